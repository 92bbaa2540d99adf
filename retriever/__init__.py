"""Passage retrieval: indexes of words and of meaning, an HTTP server for every client's dialect, and a client.

Nothing is imported here, so that `import agentrl.retriever.cli` stays cheap. Start at
`agentrl.retriever.opening.open_searcher`. Of agentrl only `plugins` and `errors`; torch only where an encoder needs it.
"""
