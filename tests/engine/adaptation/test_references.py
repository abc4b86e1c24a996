"""Adaptations against what others compute: slowly and directly, by peft, by transformers' cache."""

import copy
from inspect import signature

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, relu, softmax
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from engine.adaptation import Adapter, LowRank, Prefix, Prompt
from engine.adaptation.prefixes import NAME, attend
from engine.isolation import first_position
from tests.engine import tiny
from tests.engine.adaptation import cases
from tests.engine.adaptation.test_contract import exported

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # peft, of Conv1D
TOKENS = torch.arange(5, 5 + 2 * tiny.LENGTH).view(2, -1)
NORMED_BEFORE = {
    "modernbert": ("attn_norm", "attn", "mlp_norm", "mlp"),
    "gpt2": ("ln_1", "attn", "ln_2", "mlp"),
    "llama": ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
}
OTHERS = ("mistral", "qwen2", "qwen3")


def backbone_of(folder, kind, adaptation=None):
    """A tiny model; the adaptation's weights are all moved away from what they begin with."""
    if kind in OTHERS:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=tiny.VOCABULARY, **sizes, **heads)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    else:
        model = tiny.learner(folder, f"{kind}_tiny").backbone
    model = model if adaptation is None else adaptation.build(0).apply(model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if adaptation is not None and parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return model.eval()


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "gpt2", "llama", *OTHERS])
@torch.no_grad()
def test_a_layer_with_adapters_is_what_the_papers_draw(tmp_path, kind, placement):
    activation = gelu if kind == "bert" else relu
    config = Adapter(placement=placement, size=8, activation=activation.__name__)
    backbone = backbone_of(tmp_path, kind, config)
    seen = []
    name = next(n for n, module in backbone.named_modules() if n.endswith((".0", ".h.0")))
    layer = backbone.get_submodule(name)
    layer.register_forward_hook(lambda *call: seen.append(call[1:]), with_kwargs=True)
    backbone(input_ids=TOKENS)
    (positional, named, output), bare = seen[0], copy.deepcopy(layer)
    for module in bare.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    given = signature(layer.forward).bind(*positional, **named).arguments
    given |= given.pop("kwargs", {})
    stream = given.pop("hidden_states")

    def change(values, part):
        adapter = getattr(bare, f"{part}_adapter", None)
        if adapter is None:
            return 0.0
        return adapter.up(activation(adapter.down(values)))

    if kind in {"bert", "roberta"}:
        attention, after = bare.attention.self, bare.attention.output
        inner = after.dense(attention(stream, given["attention_mask"])[0])
        middle = after.LayerNorm(inner + change(inner, "attention") + stream)
        fed = bare.output.dense(bare.intermediate(middle))
        more = 4 * change(middle, "feed_forward") if placement == "parallel" else None
        more = change(fed, "feed_forward") if more is None else more
        expected = bare.output.LayerNorm(fed + more + middle)
    else:
        names = NORMED_BEFORE["llama" if kind in OTHERS else kind]
        norm, attention, second, feed = (getattr(bare, part) for part in names)
        inner = attention(norm(stream), **given)[0]
        middle = stream + inner + change(inner, "attention")
        normed = second(middle)
        fed = feed(normed)
        more = 4 * change(normed, "feed_forward") if placement == "parallel" else None
        expected = middle + fed + (change(fed, "feed_forward") if more is None else more)
    torch.testing.assert_close(output, expected)
    assert not torch.allclose(output, stream)


@pytest.mark.parametrize("kind", ["gpt2", "llama", *OTHERS])
@torch.no_grad()
def test_a_prefix_is_a_cache_that_begins_with_it(tmp_path, kind):
    adapted = backbone_of(tmp_path, kind, Prefix(length=3))
    plain = backbone_of(tmp_path, kind)
    cache = DynamicCache(config=plain.config)
    parts = [module for name, module in adapted.named_modules() if name.endswith(f".{NAME}")]
    for number, part in enumerate(parts):
        pair = (part.key, part.value)
        size = plain.config.hidden_size // plain.config.num_attention_heads
        heads = [given.view(3, -1, size).transpose(0, 1).expand(2, -1, -1, -1) for given in pair]
        cache.update(*heads, number)
    expected = plain(
        input_ids=TOKENS,
        past_key_values=cache,
        attention_mask=torch.ones(2, 3 + tiny.LENGTH),
        position_ids=torch.arange(tiny.LENGTH)[None],
    ).logits
    torch.testing.assert_close(adapted(input_ids=TOKENS).logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain(input_ids=TOKENS).logits, expected)
    # Its own cache holds no prefix, and goes on where it stopped.
    first = adapted(input_ids=TOKENS[:, :9], use_cache=True)
    rest = adapted(input_ids=TOKENS[:, 9:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, expected[:, 9:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@torch.no_grad()
def test_what_a_token_of_an_encoder_attends_to(tmp_path, kind):
    backbone = backbone_of(tmp_path, kind, Prefix(length=3))
    module = next(m for m in backbone.modules() if hasattr(m, NAME))
    query, key, value = torch.randn(3, 1, 2, 5, 32)
    mask = torch.tensor([[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 1]] * 3).bool()
    found, _ = attend(module, query, key, value, mask[None, None], scaling=0.5)
    prefix = getattr(module, NAME)
    for head in range(2):
        own = slice(32 * head, 32 * head + 32)
        for place in range(5):
            keys = torch.cat([prefix.key[:, own], key[0, head][mask[place]]])
            values = torch.cat([prefix.value[:, own], value[0, head][mask[place]]])
            weights = softmax(0.5 * keys @ query[0, head, place], 0)
            torch.testing.assert_close(found[0, place, head], weights @ values)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "gpt2", "llama"])
@torch.no_grad()
def test_a_prompt_is_embeddings_before_the_text(tmp_path, kind):
    adapted = backbone_of(tmp_path, kind, Prompt(length=3))
    plain = backbone_of(tmp_path, kind)
    prompt = adapted.base_model.soft_prompt.weight.expand(2, -1, -1)
    words = plain.get_input_embeddings()(TOKENS)
    first = first_position(plain)
    mask = torch.ones(2, tiny.LENGTH)
    mask[1, 17:] = 0
    expected = plain(
        inputs_embeds=torch.cat([prompt, words], 1),
        attention_mask=torch.cat([torch.ones(2, 3), mask], 1),
        position_ids=torch.arange(first, first + 3 + tiny.LENGTH)[None],
    ).logits[:, 3:]
    found = adapted(input_ids=TOKENS, attention_mask=mask).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain(input_ids=TOKENS, attention_mask=mask).logits)
    # As the engine gives it: masks and positions that have the prompt's places already.
    learner = tiny.learner(tmp_path, f"{kind}_tiny", Prompt(length=3).build(0)).eval()
    learner.backbone.load_state_dict(adapted.state_dict())
    batch = learner.objective.collate([tiny.example(0, 0, (24,))], 5, 2)
    tokens = batch.tensors["tokens"]
    logits = learner.backbone(input_ids=tokens).logits.flatten(0, 1)[batch.tensors["at"]]
    direct = torch.nn.functional.cross_entropy(logits, batch.tensors["labels"], reduction="sum")
    assert cases.loss(learner, batch) == pytest.approx(float(direct), rel=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("shape", ["bert_tiny", "gpt2_tiny", "llama_tiny"])
def test_peft_loads_the_updates_by_themselves(tmp_path, shape):
    adaptation = LowRank(rank=2, alpha=3)
    learner = tiny.learner(tmp_path, shape, adaptation.build(0))
    cases.train_on(learner, cases.batch(learner, "lora"), 2)
    done = exported(tmp_path, shape, adaptation, learner)
    folder = done.folder / "adapter"
    plain = tiny.learner(tmp_path, shape).backbone.eval()
    before = plain(input_ids=TOKENS).logits
    theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
    found = theirs(input_ids=TOKENS).logits
    torch.testing.assert_close(found, learner.backbone.eval()(input_ids=TOKENS).logits)
    assert not torch.allclose(found, before)
    held = load_file(folder / "adapter_model.safetensors")
    own = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    assert sum(value.numel() for value in held.values()) == own
