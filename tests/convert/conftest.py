"""A BLIP model of `transformers` and the same one converted."""

import pytest

from tests.convert.blip_models import SIZES, make_theirs
from vlp.convert.command import to_ours
from vlp.data.tokenizer import load_tokenizer
from vlp.model import load_model


@pytest.fixture
def both(tokenizer_folder, tmp_path):
    """A `transformers` BLIP, the same model converted by `vlp convert`, and the lines that the command prints."""
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def make(kind, size=SIZES[0]):
        theirs = make_theirs(kind, tokenizer, **size)
        theirs.save_pretrained(tmp_path / kind)
        tokenizer.write_files(tmp_path / kind)
        lines = to_ours(str(tmp_path / kind), str(tmp_path / f"{kind}-ours"))
        return theirs, load_model(tmp_path / f"{kind}-ours", device="cpu", precision="fp32"), lines

    return make
