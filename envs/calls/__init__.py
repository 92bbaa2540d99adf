"""Tool calls as models write them: one file a format (plug-in kind "call format"). `agentrl.envs.calls.base` first."""
