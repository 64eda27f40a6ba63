"""Log-probs and values of real tiny models: against all logits at once, padded, packed, checkpointed, LoRA."""

from copy import deepcopy

import pytest
import torch
from tiny_models import PolicyMaker
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from selfplay.config import Lora
from selfplay.errors import ConfigError
from selfplay.lora import add_adapter, merged, unwrap_peft
from selfplay.rl.batching import MicroBatch, collate
from selfplay.rl.networks import Critic, PolicyNetwork, check_head, prepare

PROMPT_LENGTHS, RESPONSE_LENGTHS = torch.tensor([2, 1, 4, 3]), torch.tensor([3, 5, 1, 2])


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 16, (4, 6), generator=generator)
    return rows * (torch.arange(6) < (PROMPT_LENGTHS + RESPONSE_LENGTHS)[:, None])


def batch_of(tokens: torch.Tensor, rows: list[int], packed: bool = False) -> MicroBatch:
    return collate(tokens, PROMPT_LENGTHS, RESPONSE_LENGTHS, rows, packed)


def one_by_one(model: LlamaForCausalLM, tokens: torch.Tensor, rows: list[int], temperature: float) -> torch.Tensor:
    """Every row by itself, without padding, all logits held: log_softmax(logits[P-1:-1] / temperature)[token]."""
    results = []
    for row in rows:
        prompt, response = int(PROMPT_LENGTHS[row]), int(RESPONSE_LENGTHS[row])
        sequence = tokens[row, : prompt + response]
        logits = model(input_ids=sequence[None]).logits[0, prompt - 1 : -1]
        distribution = torch.log_softmax(logits / temperature, dim=-1)
        results.append(distribution.gather(1, sequence[prompt:, None]).squeeze(1))
    return torch.cat(results)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_do_not_depend_on_padding_or_packing(
    make_policy: PolicyMaker, tokens: torch.Tensor, packed: bool, temperature: float
) -> None:
    model = make_policy()
    rows = [2, 0, 1, 3]
    logprobs, _ = PolicyNetwork(model, temperature)(batch_of(tokens, rows, packed))
    torch.testing.assert_close(logprobs, one_by_one(model, tokens, rows, temperature), rtol=1e-9, atol=1e-9)


def test_gradients_do_not_depend_on_padding_packing_or_checkpointing(
    make_policy: PolicyMaker, tokens: torch.Tensor
) -> None:
    plain_model = make_policy()
    one_by_one(plain_model, tokens, [0, 1, 2, 3], 0.8).square().sum().backward()
    for packed, checkpointing in ((False, False), (True, False), (False, True)):
        model = make_policy()
        prepare(model, checkpointing)
        PolicyNetwork(model, 0.8)(batch_of(tokens, [0, 1, 2, 3], packed))[0].square().sum().backward()
        for (name, expected), actual in zip(plain_model.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-8, atol=1e-8, msg=name)


def test_checkpointing_recomputes(make_policy: PolicyMaker, tokens: torch.Tensor) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for checkpointing, expected in ((False, 1), (True, 2)):
        model = make_policy()
        prepare(model, checkpointing)
        model.model.layers[0].input_layernorm.register_forward_hook(count)
        calls = 0
        PolicyNetwork(model, 1.0)(batch_of(tokens, [0, 1]))[0].sum().backward()
        assert calls == expected


def test_values_are_those_of_the_state_before_each_token_and_behind_the_last(
    make_policy: PolicyMaker, tokens: torch.Tensor
) -> None:
    critic = Critic.from_policy(make_policy(), seed=1)
    values, ends = critic(batch_of(tokens, [3, 1]))
    expected, expected_ends = [], []
    for row in (3, 1):
        prompt, response = int(PROMPT_LENGTHS[row]), int(RESPONSE_LENGTHS[row])
        hidden = critic.body(input_ids=tokens[row, : prompt + response][None]).last_hidden_state[0]
        everywhere = (hidden @ critic.head.weight[0]).tolist()
        expected += everywhere[prompt - 1 : -1]
        expected_ends.append(everywhere[-1])
    torch.testing.assert_close(values.tolist(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ends.tolist(), expected_ends, rtol=1e-9, atol=1e-9)


def test_the_critic_is_a_copy(make_policy: PolicyMaker) -> None:
    policy = make_policy()
    critic = Critic.from_policy(policy, seed=1)
    with torch.no_grad():
        critic.body.embed_tokens.weight.zero_()  # type: ignore[union-attr, operator]
    assert policy.get_input_embeddings().weight.abs().sum() > 0
    # New heads are normal with deviation 1 / sqrt(H + 1): over 4,096 weights the estimate is within 5%.
    wide = Critic.from_policy(make_policy(hidden_size=4096, num_hidden_layers=0, intermediate_size=8), seed=2)
    assert float(wide.head.weight.detach().std()) == pytest.approx(1 / 4097**0.5, rel=0.05)


def test_a_reward_model_becomes_the_critic(make_policy: PolicyMaker, tokens: torch.Tensor) -> None:
    config = make_policy().config
    reward_model = LlamaForSequenceClassification(deepcopy(config)).double().eval()
    if reward_model.config.num_labels != 1:
        with pytest.raises(ConfigError, match="num_labels=1"):
            Critic.from_scalar_model(reward_model)
    one_label = deepcopy(config)
    one_label.num_labels = 1
    reward_model = LlamaForSequenceClassification(one_label).double().eval()
    critic = Critic.from_scalar_model(reward_model)
    _, ends = critic(batch_of(tokens, [1]))
    expected = reward_model(input_ids=tokens[1, :6][None]).logits[0, 0]
    torch.testing.assert_close(ends[0], expected, rtol=1e-9, atol=1e-9)
    # The scores that a reward model gives are (raw - mean) / deviation, and so are the values.
    reward_model.config.selfplay_reward = {"mean": 1.5, "deviation": 2.5}
    _, ends = Critic.from_scalar_model(reward_model)(batch_of(tokens, [1]))
    torch.testing.assert_close(ends[0], (expected - 1.5) / 2.5, rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="score"):
        Critic.from_scalar_model(make_policy())


def test_lora_reference_is_the_adapter_switched_off(
    make_policy: PolicyMaker, tokens: torch.Tensor, tmp_path: object
) -> None:
    start = make_policy()
    adapted = add_adapter(make_policy(), Lora(rank=4, alpha=8.0))
    network, batch = PolicyNetwork(adapted, 0.9), batch_of(tokens, [0, 1, 2, 3])
    before = PolicyNetwork(start, 0.9)(batch)[0]
    torch.testing.assert_close(network(batch)[0], before, rtol=1e-9, atol=1e-9)
    assert (
        0 < sum(p.numel() for p in adapted.parameters() if p.requires_grad) < unwrap_peft(adapted).num_parameters() / 2
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(5))
    changed = network(batch)[0]
    assert (changed - before).abs().max() > 1e-3
    with adapted.disable_adapter():
        torch.testing.assert_close(network(batch)[0], before, rtol=1e-9, atol=1e-9)
    whole = merged(adapted)
    whole.save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)  # type: ignore[operator]
    torch.testing.assert_close(PolicyNetwork(loaded, 0.9)(batch)[0], changed, rtol=1e-7, atol=1e-7)
    adapted.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    from peft import PeftModel

    again = PeftModel.from_pretrained(make_policy(), tmp_path / "adapter")  # type: ignore[operator]
    torch.testing.assert_close(PolicyNetwork(again, 0.9)(batch)[0], changed, rtol=1e-6, atol=1e-6)


def test_a_critic_by_adapters_shares_the_reward_models_weights_and_learns_as_a_separate_one(
    make_policy: PolicyMaker, tokens: torch.Tensor
) -> None:
    """With W = W0 + s B A of a separate model and G its gradient: dL/dB = s G A^T, dL/dA = s B^T G."""
    torch.manual_seed(2)
    reward = LlamaForSequenceClassification(make_policy(num_labels=1).config).double().eval()
    reward.score.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    before = reward(input_ids=tokens[:1]).logits.detach()
    policy = add_adapter(make_policy(), Lora(rank=2, alpha=6.0), seed=1)  # s = alpha / rank = 3
    critic = Critic.from_scalar_model(reward, policy, 5).learns()
    weights = {id(parameter) for parameter in reward.base_model.parameters()}
    frozen = [parameter for parameter in critic.body.parameters() if not parameter.requires_grad]
    assert {id(parameter) for parameter in frozen} == weights  # no second copy
    learned = {name: one for name, one in critic.named_parameters() if one.requires_grad}
    assert all("lora_" in name or name.startswith("head.") for name in learned) and len(learned) == 2 * 2 * 7 + 2
    with torch.no_grad():
        for name, parameter in learned.items():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    separate = Critic.from_scalar_model(reward).learns()
    adapters = {name.split(".lora_A")[0]: None for name in learned if "lora_A" in name}
    with torch.no_grad():
        for name in adapters:
            a, b = (learned[f"{name}.lora_{side}.default.weight"] for side in "AB")
            separate.get_parameter(f"{name}.weight").add_(3 * b @ a)
    values = [network(batch_of(tokens, [0, 1, 2, 3]))[0] for network in (critic, separate)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-9)
    for found in values:
        found.square().sum().backward()
    for name in adapters:
        a, b = (learned[f"{name}.lora_{side}.default.weight"] for side in "AB")
        whole = separate.get_parameter(f"{name}.weight").grad
        assert whole is not None
        torch.testing.assert_close(b.grad, 3 * whole @ a.T, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(a.grad, 3 * b.T @ whole, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(critic.head.weight.grad, separate.head.weight.grad, rtol=1e-6, atol=1e-9)
    assert torch.equal(reward(input_ids=tokens[:1]).logits, before)  # it scores without the critic's adapters
    assert all(parameter.grad is None for parameter in frozen)


def test_heads_that_scale_are_understood_and_others_refused(tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    small = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    granite = GraniteForCausalLM(GraniteConfig(**small, logits_scaling=3.0)).double().eval()
    cohere = CohereForCausalLM(CohereConfig(**small, logit_scale=0.25)).double().eval()
    for model in (granite, cohere):
        check_head(model)
        logprobs, _ = PolicyNetwork(model, 0.7)(batch_of(tokens, [0, 1]))
        torch.testing.assert_close(logprobs, one_by_one(model, tokens, [0, 1], 0.7), rtol=1e-9, atol=1e-9)
    capped = Gemma2ForCausalLM(Gemma2Config(**small, head_dim=8, final_logit_softcapping=0.5)).eval()
    with pytest.raises(ConfigError, match="Gemma2ForCausalLM changes its logits"):
        check_head(capped)


def test_adapters_follow_from_their_seed_alone(make_policy: PolicyMaker) -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        adapted = add_adapter(make_policy(), Lora(rank=2, alpha=4.0), seed)
        return [p for name, p in adapted.named_parameters() if "lora_A" in name]

    first = drawn(1)
    torch.rand(7)
    outside = torch.get_rng_state()
    assert all(map(torch.equal, first, drawn(1))) and not any(map(torch.equal, first, drawn(2)))
    make_policy()  # seeds torch's generator with 0, whatever add_adapter did to it
    torch.rand(7)
    assert torch.equal(torch.get_rng_state(), outside)


def test_an_adapter_on_the_output_embedding_is_refused(make_policy: PolicyMaker) -> None:
    with pytest.raises(ValueError, match="lm_head cannot have an adapter"):
        Lora(targets=("q_proj", "lm_head"))
    from peft import LoraConfig, get_peft_model

    policy = make_policy(tie_word_embeddings=False)
    adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="an adapter on its output embedding"):
        check_head(adapted)


def test_an_adapter_on_an_embedding_is_refused(make_policy: PolicyMaker) -> None:
    for named in ("embed_tokens", "model.embed_tokens", "wte"):
        with pytest.raises(ValueError, match=f"{named.rpartition('.')[2]} cannot have an adapter: it is an embedding"):
            Lora(targets=("q_proj", named))
    policy = make_policy()
    policy.model.layers[0].register_module("places", torch.nn.Embedding(3, 4))
    with pytest.raises(ConfigError, match=r"policy.lora.targets: model.layers.0.places is an embedding"):
        add_adapter(policy, Lora(targets=("q_proj", "places")))


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(
            GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
        ),
        OPTForCausalLM(
            OPTConfig(
                vocab_size=16,
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                ffn_dim=16,
                word_embed_proj_dim=16,
                dropout=0.5,
                attention_dropout=0.5,
                layerdrop=0.5,
            )
        ),
    ],
    ids=["gpt2", "opt"],
)
def test_dropout_is_switched_off(tokens: torch.Tensor, model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    model = model.double()
    prepare(model.train(), gradient_checkpointing=True)
    network, batch = PolicyNetwork(model, 1.0), batch_of(tokens, [0, 1])
    assert torch.equal(network(batch)[0], network(batch)[0])
