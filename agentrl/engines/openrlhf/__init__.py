"""The engine of a cluster: OpenRLHF's workers on Ray, DeepSpeed for updates, vLLM for sampling.

The driver runs the same training loop, rollouts and environments as with the local engine; only the model lives
elsewhere. OpenRLHF is used as it is: its actors are subclassed, nothing of it is copied or changed on disk.

    engine.py       the engine that the training loop sees
    calls.py        calls to workers and waiting for them, with a deadline for every wait
    handover.py     weights to vLLM, dead engines started again, shared GPUs
    sharing.py      the rows of a batch to workers and their results back
    policy.py       the policy and reference actors: scoring with NTHR, updates, checkpoints, weights to vLLM
    forward.py      a DeepSpeed model's forward pass: hidden states and logits of action tokens alone
    shards.py       optimiser state of a ZeRO rank to and from safetensors
    rollout.py      the vLLM actor; vllm_worker.py is what runs inside vLLM
    router.py       which engine samples for which conversation
    sync.py         are vLLM's weights the trainer's? what is compared, and the error that says which are not
    launch.py       Ray, placement groups, actors;   arguments.py: RunConfig as OpenRLHF's arguments
    preflight.py    what can be said to be wrong before anything starts;   placement.py: who goes where
    watchdog.py     prints who waits for whom;   cpu.py: what a machine without CUDA needs, used only there

Left out on purpose: tensor-parallel and ring-attention training, and vision models.
"""
