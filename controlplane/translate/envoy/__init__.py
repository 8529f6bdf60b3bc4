"""The layer-7 model to what Envoy is fed: resources of its v3 API as plain values (JSON), then as bytes. Pure."""
