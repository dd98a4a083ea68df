#!/usr/bin/env bash
# The environment of `vlp bench train --peers` and `vlp bench data --peers`: LAVIS 1.0.2 beside the torch of the active environment.
# Use: scripts/bench_peers.sh    VLP_PEERS names another place for it than ~/.cache/vlp/peers. A second run changes nothing.
set -euo pipefail
scripts="$(cd "$(dirname "$0")" && pwd)"
peers="${VLP_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/vlp/peers}"
[ "$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] || {
    echo "Activate an environment of Python 3.11 with vlp in it: tokenizers 0.13.3, which LAVIS needs, has no builds for later ones." >&2
    exit 2
}
active="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
[ -d "$active/torch" ] || { echo "The active environment has no torch: install vlp there first." >&2; exit 2; }
wanted="$(cat "$scripts/bench_peers.txt"; echo "$active")"
if [ "$(cat "$peers/.installed" 2>/dev/null)" = "$wanted" ]; then
    echo "$peers is ready."
    exit 0
fi
rm -rf "$peers"
mkdir -p "$(dirname "$peers")"
python -m venv --without-pip "$peers"
python -m pip --disable-pip-version-check --python "$peers/bin/python" install --quiet --no-deps --requirement "$scripts/bench_peers.txt"
# torch, torchvision and whatever else is missing come from the active environment; what was installed here goes first.
echo "$active" >"$peers/lib/python3.11/site-packages/active.pth"
"$peers/bin/python" "$scripts/../vlp/bench/peer_worker.py" check
echo "$wanted" >"$peers/.installed"
echo "$peers is ready."
