#!/usr/bin/env bash
# Install what `vlp bench train|data|clip --peers` compares with: LAVIS 1.0.2 in an environment of its own, which uses the
# torch of the active environment, and the worker that runs the peers.
# Usage: scripts/bench/install_peers.sh
# The environment is created in ~/.cache/vlp/peers, or in VLP_PEERS if set. Rerun after an update of vlp; packages that are
# installed already are kept.
set -euo pipefail
scripts="$(cd "$(dirname "$0")" && pwd)"
peers="${VLP_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/vlp/peers}"
[ "$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] || {
    echo "Activate an environment with Python 3.11 and vlp: LAVIS needs tokenizers 0.13.3, which has no wheels for later Pythons." >&2
    exit 2
}
active="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
[ -d "$active/torch" ] || { echo "The active environment has no torch: install vlp there first." >&2; exit 2; }
wanted="$(grep -v '^#' "$scripts/peers.txt"; echo "$active")"
if [ "$(grep -v '^#' "$peers/.installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$peers"
    mkdir -p "$(dirname "$peers")"
    python -m venv --without-pip "$peers"
    python -m pip --disable-pip-version-check --python "$peers/bin/python" install --quiet --no-deps --requirement "$scripts/peers.txt"
    # Packages that are not installed here, such as torch and torchvision, come from the active environment.
    echo "$active" >"$peers/lib/python3.11/site-packages/active.pth"
    "$peers/bin/python" "$scripts/peer_worker.py" check
    echo "$wanted" >"$peers/.installed"
fi
cp "$scripts/peer_worker.py" "$peers/.peer_worker.tmp-$$"
mv "$peers/.peer_worker.tmp-$$" "$peers/peer_worker.py"
echo "$peers is ready."
