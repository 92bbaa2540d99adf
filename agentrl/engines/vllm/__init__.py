"""vLLM as the sampler of the one-process engine: the only place besides the cluster engine that imports vllm."""
