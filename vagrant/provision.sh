#!/usr/bin/env bash
# Makes a Debian machine a part of the mesh: provision.sh ROLE IP CONTROL_IP, ROLE being control or node. Also for bare metal.
#
# A second run changes nothing and restarts nothing; the last line says how many things it changed. What it needs from another
# machine it says in one sentence (exit code 2): a node wants /etc/nodemesh/join-token and /etc/nodemesh/root-cert.pem, which the
# control plane's machine leaves for each node in /var/lib/nodemesh-control/nodes/NAME (vagrant copies them by its shared folder).
#
#   SOURCE   where the working copy is (default: the directory above this one); its dist/ holds the wheel
#   ROOT     another root directory, for images and tests (default: /)
#   DIRECT   on a node: true lets its pods talk to each other without the tunnel between (docs/capture.md); false takes that back
#   NODES    on the control plane's machine: names of nodes to make join tokens for (default: node1 node2)
set -euo pipefail

say() { printf '==> %s\n' "$*"; }
fail() { printf 'provision: %s\n' "$*" >&2; exit 2; }

[ $# -eq 3 ] || fail "three arguments are needed: ROLE IP CONTROL_IP"
ROLE=$1 IP=$2 CONTROL_IP=$3
SOURCE=${SOURCE:-$(cd "$(dirname "$0")/.." && pwd)}
ROOT=${ROOT:-} NODES=${NODES:-node1 node2} DIRECT=${DIRECT:-false}
EXCHANGE=${EXCHANGE:-/vagrant/vagrant/.exchange}
CHANGED=0
case $ROLE in control | node) ;; *) fail "the role is control or node, not $ROLE" ;; esac
case $DIRECT in true | false) ;; *) fail "DIRECT is true or false, not $DIRECT" ;; esac
for address in "$IP" "$CONTROL_IP"; do
	case $address in *[!0-9a-fA-F.:]* | "") fail "$address is not an IP address" ;; esac
done
[ "$(id -u)" = 0 ] || fail "only root can set a machine up: run it with sudo"

changed() { say "$*"; CHANGED=$((CHANGED + 1)); }

# put PATH MODE: stdin becomes the file, if it is not already.
put() {
	local path=$ROOT$1 mode=$2 aside
	mkdir -p "$(dirname "$path")"
	aside=$(mktemp "$path.XXXXXX")
	cat >"$aside"
	if [ -e "$path" ] && cmp -s "$aside" "$path" && [ "$(stat -c %a "$path")" = "$mode" ]; then
		rm "$aside"
		return 1
	fi
	chmod "$mode" "$aside"
	mv "$aside" "$path"
	changed "$1"
}

install_packages() {
	local missing=() package
	for package in "$@"; do
		dpkg-query --root="${ROOT:-/}" -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
	done
	[ ${#missing[@]} -eq 0 ] && return
	[ -z "$ROOT" ] || fail "these packages are missing in $ROOT: ${missing[*]}"
	apt-get update -q >/dev/null || fail "apt-get update failed: is the machine online?"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null || fail "apt-get could not install ${missing[*]}"
	changed "packages ${missing[*]}"
}

install_program() {
	local wheel stamp
	wheel=$(find "$SOURCE/dist" -maxdepth 1 -name 'nodemesh-*.whl' 2>/dev/null | sort | tail -n 1)
	[ -n "$wheel" ] || fail "there is no wheel in $SOURCE/dist: build one with \`pip wheel --no-deps -w dist .\`"
	stamp=$(sha256sum "$wheel" | cut -d' ' -f1)
	[ "$(cat "$ROOT/opt/nodemesh/.wheel" 2>/dev/null)" = "$stamp" ] && return
	[ -x "$ROOT/opt/nodemesh/bin/python" ] || python3 -m venv "$ROOT/opt/nodemesh" || fail "python3 -m venv failed"
	if [ -f "$SOURCE/requirements.lock" ]; then
		install_packages gcc libc6-dev # python-iptables has no wheel
		"$ROOT/opt/nodemesh/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$SOURCE/requirements.lock" || fail "pip could not install requirements.lock"
	fi
	"$ROOT/opt/nodemesh/bin/python" -m pip install -q --disable-pip-version-check --no-deps --force-reinstall "$wheel" || fail "pip could not install $wheel"
	printf '%s\n' "$stamp" >"$ROOT/opt/nodemesh/.wheel"
	ln -sfn /opt/nodemesh/bin/meshctl "$ROOT/usr/local/bin/meshctl"
	changed "nodemesh in /opt/nodemesh"
}

# Users and directories are declared, so that systemd makes them once.
install_units() {
	local unit
	put /usr/lib/sysusers.d/nodemesh.conf 644 <"$SOURCE/deploy/systemd/nodemesh.sysusers" || true
	put /usr/lib/tmpfiles.d/nodemesh.conf 644 <"$SOURCE/deploy/systemd/nodemesh.tmpfiles" || true
	systemd-sysusers --root="${ROOT:-/}" "$ROOT/usr/lib/sysusers.d/nodemesh.conf"
	systemd-tmpfiles --root="${ROOT:-/}" --create "$ROOT/usr/lib/tmpfiles.d/nodemesh.conf"
	for unit in "$@"; do
		if put "/etc/systemd/system/nodemesh-$unit.service" 644 <"$SOURCE/deploy/systemd/nodemesh-$unit.service"; then RESTART+=("$unit"); fi
	done
}

# What the tunnel may besides, for the direct path alone.
install_direct() {
	local drop_in=/etc/systemd/system/nodemesh-ztunnel.service.d/direct.conf
	if [ "$DIRECT" = true ]; then
		if put $drop_in 644 <"$SOURCE/deploy/systemd/nodemesh-ztunnel-direct.conf"; then RESTART+=(ztunnel); fi
	elif [ -e "$ROOT$drop_in" ]; then
		rm "$ROOT$drop_in"
		RESTART+=(ztunnel)
		changed "$drop_in is gone"
	fi
}

# Without a running systemd (an image, a chroot) units are enabled only.
start_units() {
	local unit
	if [ -d /run/systemd/system ] && [ -z "$ROOT" ]; then
		systemctl daemon-reload
		for unit in "$@"; do
			systemctl is-enabled -q "nodemesh-$unit" || systemctl enable -q "nodemesh-$unit"
			if [[ " ${RESTART[*]} " == *" $unit "* ]]; then
				systemctl restart "nodemesh-$unit"
			else
				systemctl start "nodemesh-$unit"
			fi
		done
		return
	fi
	for unit in "$@"; do
		local link=$ROOT/etc/systemd/system/multi-user.target.wants/nodemesh-$unit.service
		[ -L "$link" ] && continue
		mkdir -p "$(dirname "$link")"
		ln -s "/etc/systemd/system/nodemesh-$unit.service" "$link"
		changed "nodemesh-$unit is enabled"
	done
}

RESTART=()

provision_control() {
	install_units controlplane
	if put /etc/nodemesh/controlplane.env 644 <<<"CONTROLPLANE_SANS=$IP"; then RESTART+=(controlplane); fi
	start_units controlplane
	[ -d /run/systemd/system ] && [ -z "$ROOT" ] || return 0
	local name state=/var/lib/nodemesh-control
	for _ in $(seq 50); do
		[ -f $state/ca/root-cert.pem ] && break
		sleep 0.2
	done
	[ -f $state/ca/root-cert.pem ] || fail "the control plane does not start: journalctl -u nodemesh-controlplane"
	for name in $NODES; do
		[ -f "$state/nodes/$name/join-token" ] && continue
		install -d -m 0700 "$state/nodes/$name"
		(umask 077 && runuser -u nodemesh-control -- env NODEMESH_STATE_DIR=$state /opt/nodemesh/bin/controlplane token create --node "$name" >"$state/nodes/$name/join-token")
		cp $state/ca/root-cert.pem "$state/nodes/$name/"
		changed "a join token for $name in $state/nodes/$name"
	done
	if [ -d "$(dirname "$EXCHANGE")" ]; then
		install -d -m 0700 "$EXCHANGE" && cp -r $state/nodes/. "$EXCHANGE/"
	fi
}

provision_node() {
	local name file
	name=$(hostname)
	for file in join-token root-cert.pem; do
		if [ ! -s "$ROOT/etc/nodemesh/$file" ] && [ -s "$EXCHANGE/$name/$file" ]; then
			put "/etc/nodemesh/$file" 600 <"$EXCHANGE/$name/$file" || true
		fi
		[ -s "$ROOT/etc/nodemesh/$file" ] || fail "/etc/nodemesh/$file is missing: copy it from /var/lib/nodemesh-control/nodes/$name of $CONTROL_IP"
	done
	chmod 644 "$ROOT/etc/nodemesh/root-cert.pem"
	install_units nodeagent ztunnel
	install_direct
	local server direct=
	[ "$DIRECT" = false ] || direct=$'NODEMESH_SAME_NODE_DIRECT=true\n'
	case $CONTROL_IP in *:*) server="https://[$CONTROL_IP]:15012" ;; *) server="https://$CONTROL_IP:15012" ;; esac
	if printf 'NODE_NAME=%s\nXDS_ADDRESS=%s\nCA_ADDRESS=%s\nINSTANCE_IP=%s\n%s' "$name" "$server" "$server" "$IP" "$direct" | put /etc/nodemesh/node.env 644; then
		RESTART+=(nodeagent ztunnel)
	fi
	start_units nodeagent ztunnel
}

install_packages python3 python3-venv systemd nftables iproute2
install_program
"provision_$ROLE"
say "$ROLE at $IP: $CHANGED changed"
