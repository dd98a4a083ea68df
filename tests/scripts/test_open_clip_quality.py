"""The comparison of quality with open_clip: its data have a sample for each caption, and its table a row for each."""

from open_clip_quality import one_caption_a_sample, table

from vlp.data.shards import expand_shards, iterate_samples


def test_each_caption_becomes_a_sample_of_its_image(captioned, tmp_path):
    count = one_caption_a_sample(f"{captioned}/*.tar", tmp_path / "pairs")
    whole = [(sample.image, text) for sample in iterate_samples(f"{captioned}/*.tar") for text in sample.captions]
    pairs = [(one.image, *one.captions) for one in iterate_samples(expand_shards(f"{tmp_path}/pairs/*.tar"))]
    assert count == len(pairs) > 60 and sorted(pairs) == sorted(whole) and pairs != whole


def test_the_table_leaves_out_what_a_model_cannot_do():
    one = {"steps": 1500, "minutes": 20.04, "scores": {"itc_t2i_r10": 0.1234}}
    assert table({"open_clip": one}).splitlines()[-1] == "| open_clip | 1,500 | 20.0 | – | 12.3 | – | – | – | – |"
