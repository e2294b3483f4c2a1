"""Token perplexity against transformers' own loss."""

import math

import pytest
import torch

from pruning.data.bos import Bos
from pruning.evaluation.perplexity import token_perplexity, tokenize
from pruning.runtimes.served import Served


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_token_perplexity_is_exp_of_transformers_mean_loss(model, batch):
    tokens = torch.randint(0, model.config.vocab_size, (5 * 8 + 3,))  # a tail of 3 is dropped
    losses = []
    for k in range(5):
        row = tokens[None, 8 * k : 8 * k + 8]
        losses.append(model(input_ids=row, labels=row).loss.item())
    expected = math.exp(sum(losses) / 5)
    assert token_perplexity(model, tokens, 8, batch) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_says_nothing_has_the_vocabulary_as_perplexity(model):
    def flat(ids, mask):
        return {"logits": torch.zeros(*ids.shape, 50, dtype=torch.bfloat16)}

    tokens = torch.arange(40)
    assert token_perplexity(Served(model, flat), tokens, 10, 2) == pytest.approx(50)


def test_documents_are_joined_by_a_blank_line_without_special_tokens(tokenizer):
    found = tokenize(Bos.auto.encoder(tokenizer, "bos"), ["the sun ", " ice"], None)
    assert tokenizer.convert_ids_to_tokens(found) == ["the", "sun", "\n\n", "ice"]


def test_no_more_documents_are_tokenized_than_needed(tokenizer):
    found = tokenize(Bos.auto.encoder(tokenizer, "bos"), ["the sun ", " ice ", " fire"], 3)
    assert tokenizer.convert_ids_to_tokens(found) == ["the", "sun", "\n\n", "ice"]
