#!/usr/bin/env bash
# Builds a real API server, its etcd, istiod and Istio's node agent for `NODEMESH_REAL_KUBERNETES=DIRECTORY` and
# `NODEMESH_REAL_ISTIO_CNI=DIRECTORY` (docs/kubernetes.md), from the Go module proxy; `DIRECTORY istio-cni`: the last
# alone. Idempotent; needs Go 1.26, 2 GiB and patience.
set -euo pipefail
directory=$(realpath -m "${1:?usage: tools/real.sh DIRECTORY [istio-cni]}")
kubernetes=1.37.2 etcd=3.7.3 gateway_api=1.6.0
istio=v0.0.0-20260827124520-eed52ebb66ad
export GOWORK=off GOFLAGS="-mod=mod -buildvcs=false" CGO_ENABLED=0
mkdir -p "$directory"/{bin,crds,src}
cd "$directory/src"

# A copy of a module that can be written to.
copy() { # MODULE@VERSION NAME
	[ -d "$2" ] || {
		where=$(cd / && go mod download -json "$1" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
		cp -r "$where" "$2.new" && chmod -R u+w "$2.new" && mv "$2.new" "$2"
	}
}
build() { # SOURCE PACKAGE [FLAGS]
	echo "$2" && cd "$1" && go build -p 2 -ldflags="-s -w ${3:-}" -o "$directory/bin/" "$2" && cd ..
}

copy "istio.io/istio@$istio" istio
build istio ./cni/cmd/install-cni
build istio ./cni/cmd/istio-cni
if [ "${2:-}" = istio-cni ]; then
	echo "ready: NODEMESH_REAL_ISTIO_CNI=$directory"
	exit
fi

mkdir -p etcd
printf 'module main\n\ngo 1.26.0\n\nrequire go.etcd.io/etcd/server/v3 v%s\n' "$etcd" >etcd/go.mod
printf 'package main\n\nimport (\n"os"\n"go.etcd.io/etcd/server/v3/etcdmain"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n' >etcd/main.go
build etcd .
mv "$directory/bin/main" "$directory/bin/etcd"

copy "k8s.io/kubernetes@v$kubernetes" kubernetes
rm -f kubernetes/go.work kubernetes/go.work.sum
# What lies in its tree as `staging` is published as modules of their own.
sed -i -E "s#(k8s.io/[a-z-]+) => ./staging/.*#\1 => \1 v0.${kubernetes#1.}#" kubernetes/go.mod
version=k8s.io/component-base/version
build kubernetes ./cmd/kube-apiserver "-X $version.gitVersion=v$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=${kubernetes:2:2}"

build istio ./pilot/cmd/pilot-discovery
install -m 644 istio/manifests/charts/base/files/crd-all.gen.yaml "$directory/crds/istio.yaml"
copy "sigs.k8s.io/gateway-api@v$gateway_api" gateway-api
install -m 644 gateway-api/config/crd/experimental/gateway.networking.k8s.io_*.yaml "$directory/crds/"
rm -f "$directory"/crds/*_vap_*
echo "ready: NODEMESH_REAL_KUBERNETES=$directory"
