"""What OpenRLHF's actors take: RunConfig as the nested arguments that they read; and their undecorated classes.

OpenRLHF builds them in its command's `__main__`, so that they cannot be had by importing; these are the ones that the
actors used here read, with OpenRLHF's own defaults where agentrl has no say.
"""

from __future__ import annotations

from types import SimpleNamespace as Args
from typing import Any

from agentrl.config import RunConfig


def undecorated(remote_class: Any) -> Any:
    """The class under `@ray.remote`, so that it can be subclassed."""
    return remote_class.__ray_metadata__.modified_class.__ray_actor_class__


def openrlhf_arguments(config: RunConfig, *, cpu: bool) -> Any:
    """For `PolicyModelActor`, `ReferenceModelActor` and `DeepspeedStrategy`."""
    c, o, lora = config.openrlhf, config.optim, config.model.lora
    bf16 = config.model.dtype == "bfloat16"
    return Args(
        local_rank=-1,
        ds=Args(
            param_dtype="bf16" if bf16 else "fp32",
            adam_offload=c.adam_offload,
            zero_stage=c.zero_stage,
            zpg=1,
            use_universal_ckpt=False,
            grad_accum_dtype="fp32",
            overlap_comm=False,
            deepcompile=False,
            tensor_parallel_size=1,
            ring_attn_size=1,
            attn_implementation=c.attention,
            experts_implementation=None,
            load_in_4bit=False,
            lora=Args(
                rank=lora.rank if lora else 0,
                alpha=lora.alpha if lora else 0,
                target_modules=lora.targets if lora else None,
                dropout=0,
            ),
            packing_samples=False,  # `forward.py` packs
            use_liger_kernel=False,
            enable_sleep=c.colocate,
        ),
        train=Args(
            dynamic_batch_enable=True,  # one DeepSpeed step per call of ours, however many micro-batches
            max_epochs=1,
            micro_batch_size=1,
            batch_size=c.workers,
            colocate_all=c.colocate,
            async_enable=c.asynchronous,
            enable_ema=False,
            ema_beta=0.992,
            seed=config.seed,
        ),
        actor=Args(
            eps_clip=0.2,
            eps_clip_low_high=(0.2, 0.2),
            dual_clip=None,
            loss_agg_mode="token-mean",
            policy_loss_type="ppo",
            aux_loss_coef=0.0,
            entropy_coef=None,
            gradient_checkpointing_enable=config.model.gradient_checkpointing,
            gradient_checkpointing_reentrant=False,
            optim="adam",
            muon=Args(),
            adam=Args(lr=o.lr, betas=list(o.betas), eps=1e-8, weight_decay=o.weight_decay),
            lr_scheduler="constant",  # the learning rate is set before every step
            lr_warmup_ratio=0.0,
            min_lr_ratio=1.0,
            max_norm=o.max_grad_norm or 0.0,  # 0: DeepSpeed does not clip
            freeze_visual_encoder=False,
        ),
        algo=Args(
            advantage=Args(
                is_correction_level="off",
                is_correction_mode="mask",
                is_correction_gating="ratio",
                is_correction_threshold=(0.5, 5.0),
            ),
            kl=Args(use_loss=False, init_coef=0.0),
        ),
        ref=Args(offload=False),
        rollout=Args(temperature=1.0),  # `forward.py` divides
        vllm=Args(
            sync_backend="gloo" if cpu else "nccl",
            sync_with_ray=False,
            num_engines=c.engines,
            tensor_parallel_size=c.tensor_parallel,
            enable_prefix_caching=c.prefix_caching,
        ),
        data=Args(disable_fast_tokenizer=False),
        ckpt=Args(save_hf=False, disable_ds=True, path="", load_enable=False, output_dir=""),
    )
