"""The routes: OpenAI's, text-embeddings-inference's (TEI), rerank in both forms, and our own for all heads at once."""
