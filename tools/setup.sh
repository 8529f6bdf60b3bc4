#!/usr/bin/env bash
# Sets a checkout up, one idempotent step per argument: root system python native plugin bpf observers bench. A line of progress per step; a step
# that cannot be done says in one sentence what is missing and ends with exit code 2.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(nftables iproute2 containernetworking-plugins iperf3 nginx-light socat tcpdump curl iptables musl-tools gcc make procps util-linux python3-venv systemd systemd-container shellcheck clang llvm libbpf-dev libbpf1)

say() { printf '\033[2m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 2; }

# A step is skipped while its inputs are unchanged: fresh NAME INPUT...
fresh() {
	local stamp=build/stamps/$1 sum
	shift
	sum=$(cat "$@" 2>/dev/null | sha256sum)
	[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ]
}
done_with() {
	local stamp=build/stamps/$1
	shift
	cat "$@" | sha256sum >"$stamp"
}

# Before anything is built: nobody shall wait for minutes to hear this.
root() {
	[ "$(id -u)" = 0 ] || fail "namespaces and capture rules need root: run it with sudo"
}

system() { install_missing "${PACKAGES[@]}"; }

install_missing() {
	local missing=() package
	for package in "$@"; do
		dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
	done
	[ ${#missing[@]} -eq 0 ] && return
	[ "$(id -u)" = 0 ] || fail "these Debian packages are missing and only root can install them: ${missing[*]}"
	say "system packages: ${missing[*]}"
	# nginx must not start as a service of this machine: the lab runs its own in pods.
	local log=build/apt.log
	{ apt-get update -q && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
		fail "apt-get could not install ${missing[*]}: $(tail -n 1 "$log")"
}

python() {
	fresh python requirements-dev.lock && [ -x .venv/bin/python ] && return
	local interpreter
	interpreter=$(command -v python3.11 || command -v python3) || fail "python3 (3.11 or newer) is not installed"
	"$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$interpreter is older than Python 3.11"
	say "Python environment in .venv"
	[ -x .venv/bin/python ] || "$interpreter" -m venv .venv || fail "$interpreter -m venv failed: is python3-venv installed?"
	.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock || fail "pip could not install requirements-dev.lock"
	done_with python requirements-dev.lock
}

sources() { git ls-files -co --exclude-standard -- Cargo.toml Cargo.lock pyproject.toml ztunnel/crates | sort; }

native() {
	local files
	mapfile -t files < <(sources)
	fresh native "${files[@]}" && ls ztunnel/_core*.so >/dev/null 2>&1 && [ -x .venv/bin/meshctl ] && return
	command -v cargo >/dev/null || fail "cargo is not installed: Rust 1.88 or newer is needed (https://rustup.rs)"
	say "Rust data path (the first time takes some minutes)"
	env VIRTUAL_ENV="$PWD/.venv" .venv/bin/maturin develop --release --locked >build/native.log 2>&1 || {
		tail -n 40 build/native.log >&2
		fail "the Rust data path did not build: build/native.log has the whole story"
	}
	done_with native "${files[@]}"
}

plugin() {
	make -s -C cni
}

bpf() {
	make -s -C bpf
}

# What only tests need: a Prometheus and a Zipkin server that listen to the mesh.
ZIPKIN=3.5.1
observers() {
	install_missing prometheus
	command -v java >/dev/null || install_missing default-jre-headless
	[ -f build/stamps/zipkin-$ZIPKIN ] && [ -f build/zipkin-server.jar ] && return
	command -v mvn >/dev/null || install_missing maven
	say "Zipkin's server $ZIPKIN"
	mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy -Dartifact=io.zipkin:zipkin-server:$ZIPKIN:jar:slim \
		-Dmdep.stripVersion=true -Dmdep.stripClassifier=true -DoutputDirectory=build >build/zipkin.log 2>&1 ||
		fail "Maven could not fetch Zipkin's server: build/zipkin.log has the whole story"
	touch build/stamps/zipkin-$ZIPKIN
}

# What only `make bench` needs. Without strace or valgrind it leaves out what they count and says so.
bench() {
	(install_missing strace valgrind) || true
	local wanted=${CASE:-}
	[ -n "$wanted${QUICK:-}" ] || wanted=instructions
	case ",$wanted," in *,instructions,*) ;; *) return 0 ;; esac
	command -v cargo >/dev/null || fail "cargo is not installed: Rust 1.88 or newer is needed (https://rustup.rs)"
	cargo build --release --locked -q -p ztunnel-net --example instructions >build/bench.log 2>&1 || {
		tail -n 20 build/bench.log >&2
		fail "bench/instructions.rs did not build: build/bench.log has the whole story"
	}
}

for step in "$@"; do
	[ "$step" = root ] || mkdir -p build/stamps 2>/dev/null || fail "$PWD/build cannot be made: this user may not write here"
	case $step in
	root | system | python | native | plugin | bpf | observers | bench) $step ;;
	*) fail "no step is called $step; steps: root system python native plugin bpf observers bench" ;;
	esac
done
