"""What documents of Istio's and the Gateway API's may hold: field tables, and how a document is read by them."""
