"""Passage retrieval: BM25 in process, the same index behind an HTTP server, and a client for it.

Nothing is imported here, so that `import agentrl.retriever.cli` stays cheap. Start at `agentrl.retriever.base.open_searcher`.
Neither torch nor agentrl is ever imported by this package. Left out on purpose: dense retrieval.
"""
