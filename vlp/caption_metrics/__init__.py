"""Metrics of captions against reference captions: Penn Treebank tokens, BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE."""
