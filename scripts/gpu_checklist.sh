#!/usr/bin/env bash
# What no machine without a GPU can prove, in half an hour on the first one. In the clone, with the cluster's packages:
#   scripts/gpu_checklist.sh [--out FOLDER] [STEP ...]   all steps, or some; a line each: passed, failed, not proven here
#   scripts/gpu_checklist.sh --list                      the steps and what each proves
#   scripts/gpu_checklist.sh --parse                     the configs of all steps, as a run would read them; no GPU needed
# PYTHON=... chooses the interpreter. Weights are random, of published shapes: nothing is downloaded. Logs, models and
# runs are left in FOLDER (default gpu-checklist/).
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=gpu-checklist
mode=run
wanted=()
while [ $# -gt 0 ]; do
    case "$1" in
        --list | --parse) mode=${1#--} ;;
        --out) out=$2 && shift ;;
        -*) echo "error: there is no option $1; see the head of $0" >&2 && exit 2 ;;
        *) wanted+=("$1") ;;
    esac
    shift
done

# name|GPUs|what it proves
STEPS=(
    "environment|1|versions, the card, and that torch sees it"
    "handover|2|bf16 hand-overs without a false alarm; 2 % of noise is caught"
    "colocated|1|engines asleep while the policy is built and trains; CUDA IPC in buckets; level-2 sleep"
    "split|2|weights over NCCL in buckets, ZeRO-2"
    "zero3|3|two workers, one gather a bucket"
    "tp2|2|tensor parallelism with Qwen3's shapes: no false alarm of the digest"
    "tp4|4|two key/value heads over four ranks: no false alarm of the digest"
    "killed-asleep|1|a sleeping engine that is killed is started again with room for it"
    "lora|1|adapters as adapters, with sleep"
    "resume-cluster|1|a killed run goes on: fused AdamW's step is restored on the GPU"
    "resume-workers|3|a run of two workers goes on with one"
    "resume-local|1|the same for the local engine"
    "asynchronous|2|weights for engines in mid-sentence, paused over NCCL"
    "offload|2|AdamW in main memory with all of a node's cores, ZeRO-3"
    "vllm-sampler|1|vLLM in the trainer's process"
    "fused-adam|1|an update without nvcc and without flash-attn"
    "packed|2|packed rows with sdpa: no mask over all tokens, step time"
    "estimate-0.5b|1|peak memory and step time beside the dry run"
    "estimate-7b|1|the same for a 7B shape, LoRA on one shared card"
)

if [ "$mode" = list ]; then
    for step in "${STEPS[@]}"; do
        IFS='|' read -r name gpus what <<<"$step"
        printf '%-16s %s GPU%s  %s\n' "$name" "$gpus" "$([ "$gpus" = 1 ] && echo " " || echo s)" "$what"
    done
    exit 0
fi

# options that all runs share: short episodes, three steps
SHORT=(warm_start=null model.dtype=bfloat16 train.steps=3 train.delta_every=1 eval.questions=0 rollout.prompts_per_step=8
    rollout.group_size=4 rollout.max_context=512 train.micro_batch_tokens=4096 log.checkpoint_every=2
    "log.runs_dir=$out/runs" openrlhf.gpus_per_node=1 openrlhf.enforce_eager=true algorithm.loss.tis_cap=2.0)
SHARED=(openrlhf.colocate=true openrlhf.gpu_memory=0.4)

check() { # SUBCOMMAND CONFIG KEY=VALUE ...; with --parse the config alone is read
    local how=$1 config=$2
    shift 2
    if [ "$mode" = parse ]; then
        (IFS=$'\t' && echo "$config"$'\t'"$*") >>"$out/configs.txt"
        return
    fi
    PYTHONPATH=$PWD $python scripts/gpu_checks.py "$how" "$config" "$@"
}
model() { # SHAPE: the folder of a model
    [ "$mode" = parse ] || PYTHONPATH=$PWD $python scripts/gpu_checks.py model "$1" "$out/models/$1" >&2 || return 1
    echo "$out/models/$1"
}
train() { # NAME SHAPE KEY=VALUE ...: a run of the cluster engine to its end
    local name=$1 folder
    folder=$(model "$2") || return 1
    shift 2
    check measure cluster_tiny "${SHORT[@]}" "model.path=$folder" "log.name=$name" "$@"
}
killed() { # NAME: kill -9 once a checkpoint is there, then resume
    local name=$1 pid
    shift
    if [ "$mode" = parse ]; then
        train "$name" "$@"
        return
    fi
    rm -rf "$out/runs/$name"
    train "$name" "$@" train.steps=6 &
    pid=$!
    for _ in $(seq 600); do
        compgen -G "$out/runs/$name/checkpoints/step-000002*" >/dev/null && break
        compgen -G "$out/runs/$name/checkpoints/step-2*" >/dev/null && break
        kill -0 $pid 2>/dev/null || break
        sleep 1
    done
    pkill -KILL -P $pid
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    sleep 10 # Ray's processes end with their driver
}
resumed() { # NAME
    [ "$mode" = parse ] && return
    PYTHONPATH=$PWD $python -m agentrl resume "$out/runs/$1"
}

step_environment() {
    [ "$mode" = parse ] && return
    nvidia-smi && $python - <<'PYTHON'
from importlib.metadata import PackageNotFoundError, version

import torch

for name in ("torch", "vllm", "openrlhf", "deepspeed", "ray", "transformers", "flash-attn"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "not installed")
assert torch.cuda.is_available(), "torch sees no CUDA device"
print(torch.cuda.get_device_name(0), torch.cuda.device_count())
PYTHON
}
step_handover() {
    [ "$mode" = parse ] && return
    local folder
    folder=$(model 0.5b) && PYTHONPATH=$PWD $python scripts/check_handover.py "$folder" --times 50 |
        tee /dev/stderr | grep -q "false alarms 0"
}
step_colocated() { train colocated 0.5b "${SHARED[@]}"; }
step_split() { train split 0.5b; }
step_zero3() { train zero3 0.5b openrlhf.gpus_per_node=2 openrlhf.zero_stage=3; }
step_tp2() { train tp2 qwen3 "${SHARED[@]}" openrlhf.gpus_per_node=2 openrlhf.engines=1 openrlhf.tensor_parallel=2; }
step_tp4() {
    train tp4 qwen3-two-kv "${SHARED[@]}" openrlhf.gpus_per_node=4 openrlhf.engines=1 openrlhf.tensor_parallel=4
}
step_killed-asleep() {
    local folder
    folder=$(model 0.5b) && check kill-asleep cluster_tiny "${SHORT[@]}" "${SHARED[@]}" "model.path=$folder" \
        log.name=killed-asleep
}
step_lora() { train lora 0.5b "${SHARED[@]}" model.lora.rank=16; }
step_resume-cluster() { killed resume-cluster 0.5b "${SHARED[@]}" && resumed resume-cluster; }
step_resume-workers() {
    killed resume-workers 0.5b openrlhf.gpus_per_node=2 || return 1
    [ "$mode" = parse ] || sed -i 's/gpus_per_node: 2/gpus_per_node: 1/' "$out/runs/resume-workers/config.yaml"
    resumed resume-workers
}
step_resume-local() { killed resume-local 0.5b engine=local model.device=cuda && resumed resume-local; }
step_asynchronous() { train asynchronous 0.5b openrlhf.asynchronous=true; }
step_offload() { train offload 0.5b openrlhf.zero_stage=3 openrlhf.adam_offload=true; }
step_vllm-sampler() {
    if ! $python -c 'from agentrl.config.schema import RolloutConfig as R; exit("sampler" not in R.model_fields)'; then
        echo "rollout.sampler is not in this version"
        return 77
    fi
    train vllm-sampler 0.5b engine=local rollout.sampler=vllm
}
step_fused-adam() {
    if [ "$mode" = run ] && $python -c 'import flash_attn' 2>/dev/null; then
        echo "flash-attn is installed: this does not show that it is not needed"
    fi
    CUDA_HOME=/nonexistent train fused-adam 0.5b "${SHARED[@]}"
}
step_packed() { train packed 0.5b openrlhf.packing=true train.micro_batch_tokens=16384; }
step_estimate-0.5b() { train estimate-0.5b 0.5b "${SHARED[@]}" rollout.prompts_per_step=32 rollout.max_context=2048; }
step_estimate-7b() {
    train estimate-7b 7b openrlhf.colocate=true openrlhf.gpu_memory=0.5 model.lora.rank=16 \
        model.gradient_checkpointing=true
}

gpus=$([ "$mode" = parse ] && echo 1000 || nvidia-smi -L 2>/dev/null | wc -l)
mkdir -p "$out/logs"
: >"$out/configs.txt"
failed=0
for step in "${STEPS[@]}"; do
    IFS='|' read -r name need what <<<"$step"
    if [ ${#wanted[@]} -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then
        continue
    fi
    if [ "$gpus" -lt "$need" ]; then
        printf 'not proven here  %-16s needs %s GPUs: %s\n' "$name" "$need" "$what"
        continue
    fi
    begin=$(date +%s)
    "step_$name" >"$out/logs/$name.log" 2>&1
    code=$?
    took=$(($(date +%s) - begin))
    [ "$mode" = parse ] && continue
    case $code in
        0) printf 'passed           %-16s %4s s: %s\n' "$name" "$took" "$what" ;;
        77) printf 'not proven here  %-16s %s\n' "$name" "$(tail -n 1 "$out/logs/$name.log")" ;;
        *)
            printf 'FAILED           %-16s %4s s: %s (%s)\n' "$name" "$took" "$what" "$out/logs/$name.log"
            failed=1
            ;;
    esac
    grep -h "^measured:" "$out/logs/$name.log"
done
[ "$mode" = run ] || PYTHONPATH=$PWD $python scripts/gpu_checks.py parse "$out/configs.txt" || exit 2
exit $failed
