"""A model without the tokens that some texts do not need: the same texts, the same logits."""

import json
import random
import subprocess
import sys

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruning.models import vocabulary
from pruning.models.bpe import closed, refusal
from pruning.models.checkpoint import save
from pruning.models.modeling_pruned import cluster_embedding_
from pruning.models.shrink import shrink_
from pruning.models.vocabulary import counted, trim
from tests.helpers.allocations import mixed
from tests.helpers.families import ENCODERS, FAMILIES, llama
from tests.helpers.tiny import word_tokenizer
from tests.helpers.tokenizers import byte_level, sentencepiece_like
from tests.helpers.trimmed import KEPT, LINES, ROWS, marked, with_rows
from tests.helpers.written import untied

OTHER = "Ünknown: 日本 Привет 🙂\t\x00"


def llama3_like():
    """Return one that splits by a pattern and takes whole words without merging."""
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = byte_level(pre_tokenizers.Sequence([words, level]))
    described = json.loads(made.backend_tokenizer.to_str())
    described["model"]["ignore_merges"] = True
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))


TOKENIZERS = {
    "bytes": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "words whole": llama3_like,
    "sentencepiece": sentencepiece_like,
    "metaspace": lambda: sentencepiece_like(metaspace=True),
}


def strings(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


@pytest.fixture(scope="module")
def tokenizer():
    return marked(TOKENIZERS["bytes"]())


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_kept_text_has_the_same_tokens_and_every_other_can_be_read(kind):
    whole = marked(TOKENIZERS[kind]())
    model = with_rows(llama(), whole)
    smaller, fewer = trim(model, whole, KEPT)
    assert smaller.config.vocab_size == len(fewer) < len(whole)
    assert len(fewer) % 64 == 0
    for text in [*KEPT, "".join(KEPT), f"<|begin|>{KEPT[3]}<|end|>"]:
        assert strings(fewer, text) == strings(whole, text)
    for text in [*LINES, OTHER]:
        read = [each.decode(each(text).input_ids) for each in (whole, fewer)]
        assert read[0] == read[1]
        assert len(fewer(text).input_ids) >= len(whole(text).input_ids)
    assert max(fewer.get_vocab().values()) + 1 == len(fewer)
    order = sorted(fewer.get_vocab(), key=fewer.get_vocab().__getitem__)
    assert order == sorted(order, key=whole.get_vocab().__getitem__)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_of_any_choice_of_texts_stay(kind, monkeypatch):
    monkeypatch.setattr(vocabulary, "MULTIPLE", 1)
    whole, draw = TOKENIZERS[kind](), random.Random(3)
    model, sizes = with_rows(llama(), whole), set()
    for _ in range(12):
        texts = draw.sample(LINES, draw.randint(1, 6))
        _, fewer = trim(model, whole, texts)
        sizes.add(len(fewer))
        assert [strings(fewer, text) for text in texts] == [strings(whole, text) for text in texts]
    assert len(sizes) > 6


def test_what_is_on_the_way_to_a_token_stays():
    pairs = [("a", "b"), ("c", "d"), ("ab", "cd"), ("b", "c"), ("x", "y")]
    tokens = [*"abcdxy", *("".join(pair) for pair in pairs)]
    model = {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": [[*p] for p in pairs]}
    assert closed(["abcd"], model) == {*"abcd", "ab", "cd", "abcd"}
    assert closed(["xy", "a"], model) == {"x", "y", "xy", "a"}


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, "untied"])
def test_logits_of_kept_tokens_are_the_same(family, tokenizer):
    model = with_rows(untied(llama()) if family == "untied" else FAMILIES[family](), tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smaller, fewer = trim(model, tokenizer, KEPT)
    kept = [tokenizer.get_vocab()[t] for t in fewer.convert_ids_to_tokens(range(len(fewer)))]
    for text in KEPT[:3]:
        ids, new = (torch.tensor([each(text).input_ids]) for each in (tokenizer, fewer))
        expected = model(input_ids=ids).logits[..., kept]
        torch.testing.assert_close(smaller(input_ids=new).logits, expected, atol=1e-5, rtol=0)
    pairs = [(m.get_input_embeddings(), m.get_output_embeddings()) for m in (model, smaller)]
    tied = [embedding.weight is head.weight for embedding, head in pairs]
    assert tied[0] == tied[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.vocab_size == ROWS
    shared = {id(p) for p in model.parameters()}
    assert sum(id(p) not in shared for p in smaller.parameters()) == (1 if tied[0] else 2)


def test_numbers_of_tokens_with_a_name_are_new(tokenizer):
    model = with_rows(llama(), tokenizer)
    model.config.mask_token_id = ROWS - 1  # of no token
    model.generation_config.suppress_tokens = [tokenizer.pad_token_id, ROWS - 2]
    smaller, fewer = trim(model, tokenizer, KEPT)
    for config in (smaller.config, smaller.generation_config):
        assert config.bos_token_id == fewer.bos_token_id == fewer.get_vocab()["<|begin|>"]
        assert config.pad_token_id == fewer.pad_token_id == fewer.get_vocab()["<|pad|>"]
        assert config.eos_token_id == [fewer.eos_token_id, fewer.bos_token_id]
    assert smaller.config.mask_token_id is None
    assert smaller.generation_config.suppress_tokens == [fewer.pad_token_id]
    assert "<extra word>" in fewer.get_vocab()
    assert fewer.chat_template == tokenizer.chat_template
    padding = [each.get_input_embeddings().padding_idx for each in (model, smaller)]
    assert tokenizer.convert_ids_to_tokens(padding[0]) == fewer.convert_ids_to_tokens(padding[1])
    assert model.config.bos_token_id == tokenizer.bos_token_id


def test_a_script_stays_whole(tokenizer):
    model = with_rows(llama(), tokenizer)
    _, fewer = trim(model, tokenizer, KEPT, ["Latin"])
    counts = counted(tokenizer)["LATIN"], counted(fewer)["LATIN"]
    assert counts[0] == counts[1] > counted(trim(model, tokenizer, KEPT)[1])["LATIN"]
    with pytest.raises(ValueError, match=r"^model\.kept_scripts=\['runic'\]: no token is RUNIC: g"):
        trim(model, tokenizer, KEPT, ["runic"])


def other(model, before=None):
    made = Tokenizer(model)
    made.pre_tokenizer = before or pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


PIECES = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
REFUSED = {
    "WordLevel": (word_tokenizer, "it is WordLevel, and only BPE"),
    "WordPiece": (
        lambda: other(models.WordPiece(PIECES, unk_token="<unk>")),
        "it is WordPiece, and only BPE",
    ),
    "Unigram": (
        lambda: other(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
        "it is Unigram, and only BPE",
    ),
    "no bytes": (lambda: other(models.BPE(PIECES, [("a", "b")])), "it has no tokens for bytes"),
    "suffix": (
        lambda: other(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")),
        "its end_of_word_suffix is '</w>'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tokenizer_that_cannot_be_cut_is_one_line(kind):
    make, reason = REFUSED[kind]
    said = rf"^model\.vocabulary=trim: the tokenizer \w+ cannot be cut: {reason}.*: give model\."
    with pytest.raises(ValueError, match=said):
        trim(llama(), make(), KEPT)


def test_a_slow_tokenizer_an_encoder_and_a_product_are_one_line(tokenizer):
    assert refusal({}) == "it is not a fast one, and only BPE can be cut"
    with pytest.raises(ValueError, match=r"^model\.vocabulary=trim is for decoders: give"):
        trim(ENCODERS["roberta"](), tokenizer, KEPT)
    model = with_rows(llama(), tokenizer)
    cluster_embedding_(model, [100, ROWS - 100], [8, 4], tied=True)
    with pytest.raises(ValueError, match=r"^model\.vocabulary=trim: an embedding that is a prod"):
        trim(model, tokenizer, KEPT)


STRANGER = """
import json, sys

sys.modules["pruning"] = None
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer

path, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(path)
ids = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
    last = model(input_ids=ids).logits[0, -1]
made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
print(json.dumps([ids.tolist(), last.tolist(), tokenizer.decode(made[0]), chat]))
"""


@pytest.mark.job
@torch.no_grad()
def test_a_stranger_reads_and_writes_the_same(tokenizer, tmp_path):
    smaller, fewer = trim(with_rows(llama(), tokenizer), tokenizer, KEPT)
    shrink_(smaller, mixed(smaller))
    save(smaller, fewer, tmp_path / "model", "")
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "model"), KEPT[2]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ids, last, text, chat = json.loads(done.stdout.splitlines()[-1])
    mine = torch.tensor([fewer(KEPT[2]).input_ids])
    assert ids == mine.tolist()
    torch.testing.assert_close(
        torch.tensor(last), smaller(input_ids=mine).logits[0, -1], atol=1e-5, rtol=0
    )
    assert text.startswith(KEPT[2])
    assert chat == "<|begin|>a<|end|>"
