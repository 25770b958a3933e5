//! What cannot be grown is refused, all reasons at once.

use super::*;

fn refusal(small: &ModelConfig, target: &ModelConfig, plan: &GrowthPlan) -> String {
    let source = Box::new(NamedModel::new(small, weights(small, 1)));
    let refused = grow(source, target, plan, ("runs/small", 5));
    match refused {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{target:?} was not refused"),
    }
}

fn edited(edit: impl Fn(&mut LlamaConfig)) -> ModelConfig {
    let ModelConfig::Llama(mut config) = llama(2, false) else { unreachable!("it is a Llama") };
    edit(&mut config);
    ModelConfig::Llama(config)
}

#[test]
fn everything_that_does_not_fit_is_named_at_once() {
    let target = edited(|config| {
        config.vocab_size = 16;
        config.hidden_size = 8;
        config.num_hidden_layers = 1;
        config.head_dim = 8;
        config.rope_theta = 500.0;
        config.tie_word_embeddings = true;
    });
    let text = refusal(&llama(2, false), &target, &GrowthPlan::DEFAULT);
    for part in [
        "runs/small cannot grow",
        "model.vocab_size = 16 is below the source's 17",
        "model.hidden_size = 8 is below the source's 12",
        "model.num_hidden_layers = 1 is below the source's 2",
        "a head is 8 wide and the source's 4",
        "model.rope_theta or model.rope_scaling is not the source's",
        "tie_word_embeddings = true, but the source's head is its own",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn another_family_is_refused() {
    let text = refusal(&llama(2, true), &gpt2(), &GrowthPlan::DEFAULT);
    assert!(text.contains("model.model_type = \"gpt2\", but the source is \"llama\""), "{text}");
}

#[test]
fn a_residual_form_that_is_not_plain_is_refused() {
    let target = edited(|config| config.residual.skip = 1.5);
    for (source, target) in [(llama(2, false), target.clone()), (target, llama(2, false))] {
        let text = refusal(&source, &target, &GrowthPlan::DEFAULT);
        assert!(text.contains("model.residual is not that of Llama and GPT-2"), "{text}");
    }
}

#[test]
fn an_epsilon_that_is_not_exact_is_refused_with_the_one_that_is() {
    let target = edited(|config| config.hidden_size = 16);
    let text = refusal(&llama(2, false), &target, &GrowthPlan::DEFAULT);
    assert!(text.contains("set model.rms_norm_eps = 0.0075"), "{text}");
}

#[test]
fn heads_that_cannot_be_copied_whole_are_refused() {
    let with_heads = |heads, kv_heads| {
        edited(|config| {
            (config.num_attention_heads, config.num_key_value_heads) = (heads, kv_heads);
        })
    };
    // 6 queries on 2 keys to 6 on 3: one key head has 4 slots, the other 2, and each needs 3.
    let text = refusal(&with_heads(6, 2), &with_heads(6, 3), &GrowthPlan::DEFAULT);
    assert!(text.contains("6 query heads on 3 key heads cannot hold"), "{text}");
}

#[test]
fn lemon_adds_one_block_after_each_at_most() {
    let plan = plan(WidthGrowth::Equal, ResidualGrowth::Copy, DepthGrowth::Lemon);
    let target = edited(|config| config.num_hidden_layers = 5);
    let text = refusal(&llama(2, false), &target, &plan);
    assert!(text.contains("at most 4 blocks"), "{text}");
}
