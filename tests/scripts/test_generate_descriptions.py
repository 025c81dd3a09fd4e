"""Class descriptions from a local language model: a random GPT-2 with a word list of its own."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from clip_ext.text_files import clean_sentences, load_descriptions

transformers = pytest.importorskip("transformers", reason="comes with the extra `vlm`")
tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["tree_frog", "cat", "Sea or Lake"]
WORDS = "a photo of shows signs are typical photographer finds the picture titled is tree frog cat sea or lake red old".split()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_descriptions", ROOT / "scripts" / "generate_descriptions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tiny_gpt2"))
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unknown>", ".", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.normalizer = tokenizers.normalizers.Lowercase()
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    options = {"eos_token": "<end>", "unk_token": "<unknown>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **options).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=96, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def generate(script, language_model, tmp_path):
    """Run the command; returns what it wrote."""
    (tmp_path / "classes.txt").write_text("# three\n" + "\n".join(CLASSES) + "\n", encoding="utf-8")

    def run(out: str, *options: str) -> dict:
        where = ["--classes", str(tmp_path / "classes.txt"), "--model", language_model, "--out", str(tmp_path / out)]
        script.main([*where, "--device", "cpu", "--per-class", "6", *options])
        return json.loads((tmp_path / out).read_text(encoding="utf-8"))

    return run


def test_the_file_is_balanced_clean_and_says_where_it_comes_from(generate, script, language_model, tmp_path):
    content = generate("own.json", "--seed", "3")
    assert set(content) == {"source", "licence", "classes"}
    assert content["source"]["model"] == language_model and content["source"]["seed"] == 3
    assert len(content["source"]["questions"]) == len(script.QUESTIONS) >= 3
    classes = load_descriptions(tmp_path / "own.json")
    assert list(classes) == CLASSES and [len(sentences) for sentences in classes.values()] == [6, 6, 6]
    assert not any(clean_sentences(list(classes.values()))[1].values())
    for name, sentences in classes.items():
        assert all(name.replace("_", " ").lower() in sentence.lower() for sentence in sentences)
    beginnings = {" ".join(sentence.split()[:2]) for sentence in classes["cat"]}
    assert len(beginnings) >= 3  # the questions take turns
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_same_seed_repeats_the_file_and_another_does_not(generate):
    first = generate("a.json")
    assert generate("b.json") == first
    assert generate("c.json", "--seed", "1")["classes"] != first["classes"]


def test_an_interrupted_run_continues_to_the_same_file(generate, script, tmp_path, monkeypatch):
    whole = generate("whole.json", "--per-class", "30")
    real, asked = script.AnswerWriter.__call__, []

    def stop_at_fifth(self, name, number):
        asked.append((name, number))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(self, name, number)

    monkeypatch.setattr(script.AnswerWriter, "__call__", stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        generate("cut.json", "--per-class", "30")
    assert not (tmp_path / "cut.json").exists()
    assert generate("cut.json", "--per-class", "30") == whole
    assert asked[4] == asked[5]  # what was lost is asked again,
    assert len(set(asked)) == len(asked) - 1  # and nothing else


def test_an_unfinished_file_of_other_settings_is_refused(generate, tmp_path):
    with pytest.raises(SystemExit, match="after 1 rounds"):
        generate("own.json", "--per-class", "500", "--rounds", "1")
    with pytest.raises(SystemExit, match="begun with other settings .seed 0, now 5.*delete the file"):
        generate("own.json", "--seed", "5")


def test_classes_that_stay_short_are_named_with_their_counts(script):
    def ask(name: str, number: int) -> list[str]:
        own = [f"{name} is seen in round {number}."] if name == "cat" else []
        return [*own, "the same words for all."]

    answers = {"cat": [], "dog": [], "cow": []}
    with pytest.raises(ValueError, match="after 3 rounds 2 of 3 classes .* than 2 .*: dog 0, cow 0"):
        list(script.collect(answers, ask, per_class=2, rounds=3))
    assert script.clean(answers)["cat"] == ["cat is seen in round 0.", "cat is seen in round 1."]
    assert answers["cat"][2] == []  # a class that has enough is not asked again


def test_existing_output_and_bad_class_files_are_errors(generate, script, tmp_path):
    (tmp_path / "own.json").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="own.json exists"):
        generate("own.json")
    assert (tmp_path / "own.json").read_text(encoding="utf-8") == "mine"
    for text, message in [("a b\nA_b\n", "named twice: A_b"), ("# nothing\n", "no class in it")]:
        (tmp_path / "bad.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            script.read_classes(tmp_path / "bad.txt")
    with pytest.raises(SystemExit):
        generate("other.json", "--per-class", "0")


def test_split_sentences_drops_what_breaks_off(script):
    text = "A cat sleeps . It is  red!\nA list without end\nThe end is"
    assert script.split_sentences(text) == ["A cat sleeps.", "It is red!"]


def test_an_instructed_model_reads_the_question_before_the_beginning(script, language_model):
    writer = script.AnswerWriter(language_model, seed=0, device="cpu")
    assert writer._prompt("What is red?", "Red is") == "Red is"
    turns = "{% for turn in messages %}[{{ turn['content'] }}]{% endfor %}"
    writer.tokenizer.chat_template = turns + "{% if add_generation_prompt %}>{% endif %}"
    assert writer._prompt("What is red?", "Red is") == "[What is red?]>Red is"
