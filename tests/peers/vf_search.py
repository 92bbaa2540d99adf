"""Our search task, where verifiers looks for tasksets."""

from agentrl.integrations.verifiers import Search

__all__ = ["Search"]
