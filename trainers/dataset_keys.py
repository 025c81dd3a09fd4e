"""Keys below `DATASET` that the folder `datasets/` reads: default, unit and allowed values, once."""

from __future__ import annotations

from yacs.config import CfgNode


def add_dataset_keys(node: CfgNode) -> None:
    """Add the keys of our data sets to Dassl's node `DATASET` in place."""
    node.SUBSAMPLE_CLASSES = "all"  # all | base (first half of the sorted labels) | new (the rest)
    node.SPLIT = "auto"  # auto (coop or published if there, else seeded) | coop | official | seeded
    node.SPLIT_SEED = 0  # of the seeded splits; 0 or more
    node.TEST_PERCENT = 0.0  # share of the images in a seeded test split, [0, 1); 0 = the data set's own share
    node.DOWNLOAD = False  # fetch a benchmark through torchvision if it is not there
    node.SKIP_BROKEN = False  # drop and record missing or unreadable images instead of stopping
    node.IMAGE_DIR = ""  # of a CustomImages file: folder that its image paths are relative to; "" = beside the file
    node.NON_ART = ""  # of WikiArt: folder of photographs that become a 28th class; "" = none
    node.CLASSNAMES = ""  # of unlabelled CustomImages: text file with one class name per line; "" = classes.txt inside
    node.LABEL_SOURCE = "folder"  # of Emotion6: folder (the search keyword) | votes (their arg-max)
    node.TIES = "auto"  # labels from tied votes: auto (Abstract: drop, others: first) | first (in class order) | drop
    node.FOLD = -1  # of Abstract and ArtPhoto: 0-4 is the test fold of five; -1 = no folds, seeded 80/20
    node.WITH_NEUTRAL = False  # keep Emotion6's seventh vote as a class of the distribution
    node.MINI_SIZE = "full"  # of MiniScenes: full (6,000 / 600 / 1,200 scenes, 300 groups) | small (600/100/200, 50)
    node.MINI_VIEW = "classes"  # an item of MiniScenes: classes (by largest object) | styles | captions | questions
    node.MINI_TEST = "test"  # what MiniScenes tests on: test | groups (on one background) | domains (objects held out of its captions)
    _add_vqa_keys(node)
    _add_caption_keys(node)


def _add_vqa_keys(node: CfgNode) -> None:
    """Add the keys of the data sets of questions about images: where their files lie and what happens to unusable rows."""
    node.VQA = CfgNode()
    node.VQA.DIR = ""  # folder inside DATASET.ROOT; "" = the set's usual names, else ROOT itself
    node.VQA.TRAIN = ""  # file inside that folder; "" = discovered. VQAv2: the questions file, or "questions.json,annotations.json"
    node.VQA.VAL = ""  # as TRAIN
    node.VQA.TEST = ""  # as TRAIN; its questions may lack answers
    node.VQA.IMAGES = ""  # image folder inside that folder; "" = images or Images, and the folder itself
    node.VQA.ENCODING = "utf-8-sig"  # codec of the text files, e.g. cp1252
    node.VQA.COLUMNS = ()  # "ours=theirs" list of VQAJson, e.g. ("question=text", "answer=label")
    node.VQA.MISSING = "error"  # rows that cannot be used: error (all are listed) | skip (left out and counted)
    node.VQA.MISSING_TEST = "val"  # without a test file: val (tested on) | hold_out (VAL_PERCENT of train is val, val is test)


def _add_caption_keys(node: CfgNode) -> None:
    """Add the keys of the data sets of captions: where their files lie, which rows are read, and what happens to unusable ones."""
    node.CAPTION = CfgNode()
    node.CAPTION.DIR = ""  # folder inside DATASET.ROOT; "" = the set's usual names, else ROOT itself
    node.CAPTION.TRAIN = ""  # file inside that folder; "" = discovered. Flickr30k's lists: "results.csv,split.json"
    node.CAPTION.VAL = ""  # as TRAIN
    node.CAPTION.TEST = ""  # as TRAIN; of CaptionFiles also a folder of pictures without captions, for prediction
    node.CAPTION.IMAGES = ""  # folder that picture paths are relative to; "" = images and the like beside the data file
    node.CAPTION.ENCODING = ""  # codec of the text files, e.g. cp1252; "" = UTF-8 (FlickrStyle10K: latin-1 where it is none)
    node.CAPTION.COLUMNS = ()  # "ours=theirs" list for tables and objects, e.g. ("caption=sentence", "image=file")
    node.CAPTION.STYLE = ""  # only rows of this style, e.g. humor or romantic of FlickrStyle10K; "" = all rows
    node.CAPTION.MISSING = "error"  # rows that cannot be used: error (all are listed) | skip (left out and counted)
