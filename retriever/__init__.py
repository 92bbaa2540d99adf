"""Passage retrieval: BM25 in process, the same index behind an HTTP server, and a client for it.

Nothing is imported here, so that `import agentrl.retriever.cli` stays cheap. Start at
`agentrl.retriever.opening.open_searcher`. No torch; of agentrl only `plugins` and `errors`. Left out on purpose: dense
retrieval.
"""
