//! Each refusal, word for word.

use super::{Folder, GPT2, LLAMA, refusal};

/// One file text with one line added to a table, refused with one message.
fn check(table: &str, line: &str, message: &str) {
    let text = if LLAMA.contains(table) {
        LLAMA.replacen(table, &format!("{table}\n{line}"), 1)
    } else {
        format!("{LLAMA}{table}\n{line}\n")
    };
    assert_eq!(refusal(&text, &[]), message, "{table} {line}");
}

/// A sound Llama with overrides, refused with one message.
fn check_set(overrides: &[&str], message: &str) {
    assert_eq!(refusal(LLAMA, overrides), message, "{overrides:?}");
}

#[test]
fn unknown_keys_name_the_nearest() {
    check(
        "[optim]",
        "lerning_rate = 1",
        "unknown key `optim.lerning_rate` in x.toml; did you mean `optim.lr`?",
    );
    check("[run]", "step = 1", "unknown key `run.step` in x.toml; did you mean `run.steps`?");
    check("[schedule]", "lr = 1", "unknown key `schedule.lr` in x.toml; did you mean `optim.lr`?");
    check("[run]", "zebra = 1", "unknown key `run.zebra` in x.toml; remove it");
    check("[zebras]", "", "unknown key `zebras` in x.toml; remove it");
    check_set(
        &["optim.weight_dekay=1"],
        "unknown key `optim.weight_dekay` in --set optim.weight_dekay=1; \
         did you mean `optim.weight_decay`?",
    );
}

#[test]
fn all_key_problems_are_told_at_once() {
    let text = LLAMA.replace("steps", "stepz").replace("hidden_size = 64", "hidden_size = \"x\"");
    assert_eq!(
        refusal(&text, &["optim.betas=0.9"]),
        "key `model.hidden_size` in x.toml: expected an integer of at least 0, \
         found the string \"x\"\n\
         key `optim.betas` in --set optim.betas=0.9: expected an array of two finite numbers, \
         found the number 0.9\n\
         unknown key `run.stepz` in x.toml; did you mean `run.steps`?\n\
         missing key `run.steps` in x.toml; expected the number of optimizer steps"
    );
}

#[test]
fn wrong_types_tell_expected_and_found() {
    for (set, message) in [
        ("optim.lr=fast", "expected a finite number, found the string \"fast\""),
        ("optim.lr=nan", "expected a finite number, found the number NaN"),
        ("run.steps=-1", "expected an integer of at least 0, found the integer -1"),
        ("run.steps=1e3", "expected an integer of at least 0, found the number 1000.0"),
        ("parallel.check=1", "expected true or false, found the integer 1"),
        ("data.tokens=", "expected the path of a file, found the string \"\""),
        ("optim=3", "expected a table, found the integer 3"),
        (
            "schedule.kind=cosin",
            "expected \"constant\" or \"cosine\" or \"linear\" or \"inverse_sqrt\" or \"wsd\" \
             (did you mean \"cosine\"?), found the string \"cosin\"",
        ),
        (
            "precision=bf15",
            "expected \"bf16\" or \"fp32\" or \"fp64\" (did you mean \"bf16\"?), \
             found the string \"bf15\"",
        ),
    ] {
        let key = set.split('=').next().unwrap();
        check_set(&[set], &format!("key `{key}` in --set {set}: {message}"));
    }
    check(
        "[optim.lr]",
        "x = 1",
        "key `optim.lr` in x.toml: expected a finite number, found a table",
    );
    check(
        "[optim]",
        "lr = [1]",
        "key `optim.lr` in x.toml: expected a finite number, found the array [1]",
    );
}

#[test]
fn files_and_overrides_that_cannot_be_read() {
    let folder = Folder::new(&[
        ("a.toml", "extends = \"b.toml\""),
        ("b.toml", "extends = \"a.toml\""),
        ("c.toml", "extends = 3"),
        ("d.toml", "seed = 1\n[run\n"),
    ]);
    assert_eq!(
        folder.refusal("a.toml", &[]),
        "extends goes in a circle: a.toml -> b.toml -> a.toml; remove one of these"
    );
    assert_eq!(
        folder.refusal("c.toml", &[]),
        "key `extends` in c.toml: expected the path of a TOML file, relative to this one, \
         found the integer 3"
    );
    let syntax = folder.refusal("d.toml", &[]);
    assert!(syntax.starts_with("d.toml line 2 column 5: not TOML: "), "{syntax}");
    assert_eq!(
        folder.refusal("e.toml", &[]),
        "cannot read e.toml: No such file or directory (os error 2); expected a TOML file"
    );
    for (set, problem) in [
        ("lr", "no = in it"),
        ("optim..lr=1", "the key is not names joined by dots"),
        ("optim.lr=", "no value after ="),
        ("optim.betas=[0.9", "the value opens like TOML but is not"),
    ] {
        let example = "expected --set key=value, such as --set optim.lr=1e-3";
        check_set(&[set], &format!("--set {set}: {problem}; {example}"));
    }
}

#[test]
fn keys_without_effect_are_refused() {
    let because = |key: &str, because: &str| {
        format!("key `{key}` in x.toml has no effect because {because}; remove it")
    };
    for (table, lines, key, reason) in [
        ("[optim]", "rule = \"lion\"\neps = 1e-8", "optim.eps", "optim.rule = \"lion\""),
        (
            "[schedule]",
            "cooldown_fraction = 0.1",
            "schedule.cooldown_fraction",
            "schedule.kind = \"cosine\"",
        ),
        (
            "[schedule]",
            "kind = \"constant\"\nfinal_ratio = 0.1",
            "schedule.final_ratio",
            "schedule.kind = \"constant\"",
        ),
        (
            "[eval]",
            "every = 10",
            "eval.every",
            "neither data.validation_fraction nor data.validation_tokens is set",
        ),
        ("[sample]", "prompt = \"x\"", "sample.prompt", "sample.tokens = 0"),
        (
            "[sample]",
            "tokens = 3\ntemperature = 0\ntop_k = 3",
            "sample.top_k",
            "sample.temperature = 0 takes the largest logit",
        ),
        ("[model]", "n_embd = 64", "model.n_embd", "model.model_type = \"llama\""),
        (
            "[optim.groups.bias]",
            "lr_multiplier = 2",
            "optim.groups.bias.lr_multiplier",
            "model.model_type = \"llama\" has no biases",
        ),
        (
            "[optim]",
            "weight_decay = 0\n[optim.groups.matrix]\nweight_decay_multiplier = 2",
            "optim.groups.matrix.weight_decay_multiplier",
            "optim.weight_decay = 0",
        ),
    ] {
        check(table, lines, &because(key, reason));
    }
    let tied = LLAMA.replace("[data]", "tie_word_embeddings = true\n[data]");
    let head = "\n[optim.groups.head]\nlr_multiplier = 2";
    let key = "optim.groups.head.lr_multiplier";
    let reason = "model.tie_word_embeddings = true makes the head the embedding";
    assert_eq!(refusal(&(tied + head), &[]), because(key, reason));
    let reason = "the head of model.model_type = \"gpt2\" is its embedding";
    assert_eq!(refusal(&(GPT2.to_owned() + head), &[]), because(key, reason));
}

#[test]
fn missing_and_exclusive_keys() {
    assert_eq!(
        refusal("", &[]),
        "missing key `run.steps` in x.toml; expected the number of optimizer steps\n\
         missing key `model.model_type` in x.toml; expected the family of the model, \"llama\" or \
         \"gpt2\"\n\
         missing key `model.vocab_size` in x.toml; expected the number of token ids\n\
         missing key `batch.sequence_length` in x.toml; expected the tokens of one sequence\n\
         missing key `batch.micro_batch_size` in x.toml; expected the sequences of one forward pass\
         \n\
         missing key `batch.micro_batches` in x.toml; expected the micro-batches of one step, over \
         all ranks"
    );
    assert_eq!(
        refusal(&LLAMA.replace("hidden_size = 64", ""), &[]),
        "missing key `model.hidden_size` in x.toml; expected the width of the residual stream"
    );
    assert_eq!(
        refusal(&LLAMA.replace("tokens = \"a.tokens\"", ""), &[]),
        "missing key `data.tokens` in x.toml; expected a token file, or a text file as data.text"
    );
    check_set(
        &["data.text=a.txt"],
        "missing key `data.tokenizer` in x.toml; expected \"bytes\" or the path of a tokenizer, \
         because data.text is set",
    );
    check(
        "[data]",
        "text = \"a.txt\"",
        "keys `data.tokens` and `data.text` are both set in x.toml; keep one of them",
    );
}

#[test]
fn values_state_the_rule_that_fails() {
    for (sets, message) in [
        (&["run.steps=0"][..], "run.steps = 0 must be above 0; train for 1 step or more"),
        (&["batch.micro_batches=0"], "batch.micro_batches = 0 must be above 0; use 1 or more"),
        (&["optim.lr=0"], "optim.lr = 0.0 must be above 0; use a number such as 3e-4"),
        (
            &["optim.betas=[0.9, 1]"],
            "optim.betas = [0.9, 1.0] must both be at least 0 and below 1; \
             use numbers such as [0.9, 0.95]",
        ),
        (
            &["optim.eps=-1e-8"],
            "optim.eps = -1e-8 must be at least 1e-30 and below 1.0; \
             use a small number such as 1e-8",
        ),
        (
            &["optim.eps=1"],
            "optim.eps = 1.0 must be at least 1e-30 and below 1.0; \
             use a small number such as 1e-8",
        ),
        (
            &["optim.clip_norm=-1"],
            "optim.clip_norm = -1.0 must be at least 0; use 0 for no clipping",
        ),
        (
            &["optim.weight_decay=4", "optim.groups={matrix={lr_multiplier=1000}}"],
            "optim.weight_decay = 4.0 times optim.lr = 0.0003 and the multipliers of \
             optim.groups.matrix is 1.2, and a step multiplies weights by 1 - that; \
             make the product less than 1",
        ),
        (
            &["schedule.kind=wsd", "schedule.warmup_steps=81"],
            "schedule.warmup_steps = 81 is above run.steps = 100 - 20 steps of cooldown; \
             warm up for fewer steps, or train for more",
        ),
        (
            &["schedule.kind=wsd", "schedule.cooldown_fraction=0"],
            "schedule.cooldown_fraction = 0.0 must be above 0 and at most 1; \
             use a part such as 0.2, or schedule.kind = \"constant\" for no cooldown",
        ),
        (
            &["schedule.kind=wsd", "schedule.cooldown_fraction=1e-3", "schedule.warmup_steps=100"],
            "schedule.warmup_steps = 100 is above run.steps = 100 - 1 steps of cooldown; \
             warm up for fewer steps, or train for more",
        ),
        (
            &["schedule.final_ratio=2"],
            "schedule.final_ratio = 2.0 must be at least 0 and at most 1; \
             use 0 to end at a learning rate of 0",
        ),
    ] {
        check_set(sets, message);
    }
}

#[test]
fn values_outside_of_the_optimizer_state_the_rule_that_fails() {
    for (sets, message) in [
        (
            &["memory.logits_rows=65"][..],
            "memory.logits_rows = 65 is above batch.sequence_length * batch.micro_batch_size = 64; \
             use 64 for all rows at once, or 0 to have it chosen",
        ),
        (
            &["parallel.zero=4"],
            "parallel.zero = 4 is not a ZeRO stage; \
             use 0 (nothing sharded), 1 (optimizer), 2 (and gradients) or 3 (and parameters)",
        ),
        (
            &["parallel.shard_degree=2"],
            "parallel.shard_degree = 2 has no effect at parallel.zero = 0, where nothing is sharded; \
             remove it, or set parallel.zero to 1, 2 or 3",
        ),
        (
            &["checkpoint.keep_last=0"],
            "checkpoint.keep_last = 0 must be above 0; \
             keep 1 or more, since the newest is the run's result",
        ),
        (
            &["checkpoint.max_shard_bytes=0"],
            "checkpoint.max_shard_bytes = 0 must be above 0; use 1 or more, such as 5000000000",
        ),
        (
            &["metrics.log_every=0"],
            "metrics.log_every = 0 must be above 0; use 1 to log every step",
        ),
        (
            &["sample.tokens=5"],
            "sample.tokens = 5 needs a tokenizer for the prompt; \
             set data.tokenizer to \"bytes\" or a file",
        ),
        (
            &["data.validation_fraction=1"],
            "data.validation_fraction = 1.0 must be above 0 and below 1; \
             use a part such as 0.05, or remove the key to do without validation",
        ),
        (
            &["run.steps=9223372036854775807"],
            "run.steps = 9223372036854775807 times the tokens of a step is 2^63 or more; \
             use fewer steps or smaller batches",
        ),
    ] {
        check_set(sets, message);
    }
}

#[test]
fn recorded_steps_state_what_they_need() {
    for (sets, message) in [
        (
            &["gpu.graphs=true", "device=cpu"][..],
            "gpu.graphs = true records what a GPU is asked for, and device is the CPU; \
             use device = \"cuda\", or gpu.graphs = false",
        ),
        (
            &["gpu.graphs=true", "device=cuda", "gpu.fused=false"],
            "gpu.graphs = true needs the kernels of gpu.fused in bf16 or fp32: libtorch's gradient \
             of the embedding waits for the GPU, which cannot be recorded; \
             use gpu.fused = true and another precision, or gpu.graphs = false",
        ),
        (
            &["gpu.graphs=true", "device=cuda", "data.packing=document_aligned"],
            "gpu.graphs = true records one micro-step for all, and documents cut each batch \
             elsewhere; use data.mask_documents = false, or gpu.graphs = false",
        ),
    ] {
        check_set(sets, message);
    }
}

#[test]
fn models_state_the_rule_that_fails() {
    for (set, message) in [
        (
            "model.num_attention_heads=5",
            "model.num_attention_heads = 5 does not divide hidden_size = 64; \
             use one of its divisors (1, 2, 4, 8, 16, 32, 64), or set head_dim",
        ),
        (
            "model.num_key_value_heads=3",
            "model.num_key_value_heads = 3 does not divide num_attention_heads = 4; \
             use one of its divisors (1, 2, 4)",
        ),
        (
            "model.head_dim=15",
            "model.head_dim = 15 is odd, and rotary positions turn pairs; use an even head_dim",
        ),
        ("model.vocab_size=0", "model.vocab_size = 0 must be above 0; set a positive vocab_size"),
        (
            "model.max_position_embeddings=16",
            "batch.sequence_length = 32 is above model.max_position_embeddings = 16; \
             shorten the sequences, or set model.max_position_embeddings to 32 or more",
        ),
    ] {
        check_set(&[set], message);
    }
    check_set(
        &["data.tokenizer=bytes", "model.vocab_size=255"],
        "model.vocab_size = 255 is below the 256 token ids of data.tokenizer = \"bytes\"; \
         use 256 or more",
    );
    assert_eq!(
        refusal(GPT2, &["model.tie_word_embeddings=false"]),
        "model.tie_word_embeddings = false is not possible with model.model_type = \"gpt2\", \
         whose head is its embedding; remove it or set true"
    );
    assert_eq!(
        refusal(GPT2, &["model.n_head=3"]),
        "model.n_head = 3 does not divide n_embd = 64; \
         use one of its divisors (1, 2, 4, 8, 16, 32, 64)"
    );
}
