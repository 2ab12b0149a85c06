#!/usr/bin/env bash
# Any command of rtpjax on a machine without network, from the folder that `make lab-kit` wrote:
#
#   bash run.sh lab --out OUT
#   LOAD_FORMAT=dummy CHECKPOINT_PATH=llama-3.1-8b bash run.sh serve
#
# PYTHON names the interpreter that has JAX (python3 if unset). What that one lacks is unpacked here.
set -euo pipefail
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != "@PYTHON@" ]; then
    echo "run.sh: the wheels here are for Python @PYTHON@, and $python is $version; set PYTHON to one that is." >&2
    exit 2
fi
if [ ! -d "$kit/site" ]; then
    part=$(mktemp -d "$kit/site.XXXXXX")
    for wheel in "$kit"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$part"; done
    mv "$part" "$kit/site"
fi
export PYTHONPATH="$kit/site:$kit/src${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 RTPJAX_CACHE="${RTPJAX_CACHE:-$kit/cache}"
exec "$python" -m rtpjax.cli "$@"
