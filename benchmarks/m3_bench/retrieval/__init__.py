"""Searching labelled datasets with BM25 and with the heads of bundles."""

LAYOUTS = """\
  squad     a .json file: {"data": [{"paragraphs": [{"context": …, "qas": [{"id": …, "question": …}]}]}]}
  beir      a folder: corpus.jsonl (_id, text), queries.jsonl (_id, text), qrels/test.tsv (query, document, grade)
  miracl    a folder: topics/*-dev.tsv, qrels/*-dev.tsv, docs-*.jsonl in it or in miracl-corpus-… beside it
  mldr      a folder: corpus.jsonl (docid, text) and test.jsonl (query_id, query, positive_passages)
  finetune  a .jsonl file: {"query": …, "pos": […], "neg": […]} on each line"""
"""Datasets that are read."""
