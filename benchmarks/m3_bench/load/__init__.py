"""`m3-bench serve-load`: a running server under load, ours or anybody's that speaks OpenAI's or TEI's API."""
