#!/usr/bin/env bash
# The OPC UA server, which the default build does not have: its own tests and the wire against asyncua, as in the
# gate, and clippy. Where npm is here the names and numbers of OPC 40100-1 are held against the NodeSet that the OPC
# Foundation publishes (node-opcua-nodesets carries it).
#
#   tests/opcua.sh
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
python=${INSPECTD_PYTHON:-$target/opcua-peers/bin/python}
nodesets=node-opcua-nodesets-2.182.0

if ! "$python" -c 'import asyncua' 2>/dev/null; then
    python3 -m venv "$target/opcua-peers"
    python=$target/opcua-peers/bin/python
    "$python" -m pip install --quiet asyncua==2.1.0
fi
if [ -z "${INSPECTD_NODESET:-}" ]; then
    if command -v npm >/dev/null; then
        mkdir -p "$target/$nodesets"
        (cd "$target/$nodesets" && npm pack --silent "${nodesets%-*}@${nodesets##*-}" >/dev/null && tar xzf "$nodesets.tgz")
        export INSPECTD_NODESET=$target/$nodesets/package/nodesets/Opc.Ua.MachineVision.NodeSet2.xml
    else
        echo "SKIPPED: the comparison with the NodeSet, as npm is not here (or set INSPECTD_NODESET)"
    fi
fi
export INSPECTD_PYTHON=$python INSPECTD_REQUIRE_PEERS=1

cargo test --locked --features opcua --lib output::opcua
cargo test --locked --features opcua --test line -- --nocapture opcua
cargo clippy --locked --features opcua --all-targets -- -D warnings
