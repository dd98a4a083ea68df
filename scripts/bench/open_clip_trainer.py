"""open_clip's trainer with webdataset 1: open_clip 3.3 fails at the marks that its tar reader puts after each shard.

python scripts/bench/open_clip_trainer.py --model ViT-B-32 --train-data ...

`clip_training.py` runs it. The arguments are those of `python -m open_clip_train.main`.
"""

import sys
from functools import partial

from open_clip_train import data
from open_clip_train.main import main
from webdataset.tariterators import tar_file_expander

if __name__ == "__main__":
    data.tar_file_expander = partial(tar_file_expander, eof_value=None)
    main(sys.argv[1:])
