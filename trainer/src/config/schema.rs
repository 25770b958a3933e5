//! The one table of configuration keys: name, type, when each takes effect, and what it means.

use super::plan::Meaning;

mod key;

pub(super) use key::{Applies, Key, Kind};

use key::key;

use Applies::{
    Biases, Decay, DecayShape, Documents, Family, From, GoesOn, Mixture, Mode, OneSource, OwnHead,
    Parametrization, Phase, Ramp, RandomSampling, Rewinds, RopeType, Rule, Sampling, Scalars,
    Schedule, Spikes, Teacher, Validation,
};
use Kind::{
    Count, Counts, Flag, InputPath, Number, OneOf, Pair, Range, Stages, Tables, Text, Tokenizer,
    Weights, Words,
};

const LLAMA: Applies = Family("llama");
const GPT2: Applies = Family("gpt2");
const SCALED: Applies = Parametrization(&["mup", "complete_p"]);
/// The rules whose epsilon counts.
const WITH_EPS: Applies = Rule(&[
    "adamw",
    "adamw_8bit",
    "sophia_g",
    "sophia_h",
    "schedule_free",
    "adam_mini",
    "galore",
    "soap",
]);
/// The rules with a pair of decay rates.
const WITH_BETAS: Applies = Rule(&[
    "adamw",
    "lion",
    "adamw_8bit",
    "lion_8bit",
    "sophia_g",
    "sophia_h",
    "schedule_free",
    "came",
    "adam_mini",
    "galore",
    "soap",
]);
/// The rules that leave some parameters to AdamW.
const WITH_REST: Applies = Rule(&["muon", "galore", "soap"]);
const ADAFACTOR: Applies = Rule(&["adafactor"]);
const FACTORED: Applies = Rule(&["adafactor", "came"]);
const MUON: Applies = Rule(&["muon"]);
/// Every rule.
const ALL_RULES: &[&str] = &[
    "adamw",
    "lion",
    "adamw_8bit",
    "lion_8bit",
    "sophia_g",
    "sophia_h",
    "schedule_free",
    "adafactor",
    "came",
    "adam_mini",
    "muon",
    "galore",
    "soap",
];
const SOPHIA: Applies = Rule(&["sophia_g", "sophia_h"]);
/// The rules that a group may have for itself.
const RULES: &[&str] =
    &["adamw", "lion", "adamw_8bit", "lion_8bit", "sophia_g", "sophia_h", "schedule_free"];

const POLICIES: &[&str] = &["stop", "skip", "rewind"];
/// The keys of a table of `data.sources`.
const SOURCE: &[Key] = &[
    key("name", Text, "what stages and metrics call the source").required(),
    key("tokens", InputPath, "a token file or folder").required(),
    key("weight", Number, "its weight until the first stage"),
    key("max_epochs", Number, "the epochs after which it is used no more"),
    key("validation_fraction", Number, "the part of it kept for validation"),
    key("validation_tokens", InputPath, "a token file for its validation"),
];

/// The keys of a table of `data.stages`.
const STAGE: &[Key] = &[
    key("from_step", Count, "the first step of the stage"),
    key("from_tokens", Count, "the tokens of a run before the stage"),
    key("weights", Weights, "the weights of the sources, by name").required(),
];

/// Every key, in the order of `configs/reference.toml`.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("seed", Count, "the number that all randomness of the run is keyed by"),
    key("precision", OneOf(&["bf16", "fp32", "fp64"]), "the arithmetic"),
    key("device", OneOf(&["auto", "cpu", "cuda"]), "where to compute"),

    key("run.dir", Text, "the folder the run writes to"),
    key("run.steps", Count, "the number of optimizer steps").required(),

    key("model.model_type", OneOf(&["llama", "gpt2"]), "the family of the model, \"llama\" or \"gpt2\"").required(),
    key("model.vocab_size", Count, "the number of token ids").required(),
    key("model.hidden_size", Count, "the width of the residual stream").only(LLAMA).required(),
    key("model.intermediate_size", Count, "the width inside the MLP").only(LLAMA).required(),
    key("model.num_hidden_layers", Count, "the number of blocks").only(LLAMA).required(),
    key("model.num_attention_heads", Count, "the number of query heads").only(LLAMA).required(),
    key("model.num_key_value_heads", Count, "the number of key and value heads").only(LLAMA),
    key("model.head_dim", Count, "the width of one head").only(LLAMA),
    key("model.max_position_embeddings", Count, "the longest sequence in tokens").only(LLAMA),
    key("model.rms_norm_eps", Number, "the epsilon of RMSNorm").only(LLAMA),
    key("model.rope_theta", Number, "the base of the rotary frequencies").only(LLAMA),
    key("model.rope_scaling.rope_type", OneOf(&["linear", "yarn"]), "how rotary frequencies are scaled").only(LLAMA),
    key("model.rope_scaling.factor", Number, "how many times as long the context becomes").only(LLAMA).and(RopeType(&["linear", "yarn"])),
    key("model.rope_scaling.original_max_position_embeddings", Count, "the context before, in tokens").only(LLAMA).and(RopeType(&["yarn"])),
    key("model.rope_scaling.beta_fast", Number, "turns above which frequencies stay").only(LLAMA).and(RopeType(&["yarn"])),
    key("model.rope_scaling.beta_slow", Number, "turns below which frequencies are scaled whole").only(LLAMA).and(RopeType(&["yarn"])),
    key("model.hidden_act", OneOf(&["silu"]), "the MLP's activation").only(LLAMA),
    key("model.n_positions", Count, "the longest sequence in tokens").only(GPT2),
    key("model.n_embd", Count, "the width of the residual stream").only(GPT2).required(),
    key("model.n_layer", Count, "the number of blocks").only(GPT2).required(),
    key("model.n_head", Count, "the number of heads").only(GPT2).required(),
    key("model.n_inner", Count, "the width inside the MLP").only(GPT2),
    key("model.layer_norm_epsilon", Number, "the epsilon of LayerNorm").only(GPT2),
    key("model.activation_function", OneOf(&["gelu_new"]), "the MLP's activation").only(GPT2),
    key("model.tie_word_embeddings", Flag, "whether the head is the embedding"),
    key("model.initializer_range", Number, "the standard deviation of the initial weights"),
    key("model.residual.norm", OneOf(&["pre", "post", "sub", "none"]), "where norms stand"),
    key("model.residual.gain", OneOf(&["none", "branch", "block"]), "which learned factor a branch has"),
    key("model.residual.skip", Number, "the factor on the stream past a branch"),
    key("model.residual.scalar_biases", Flag, "whether a learned number is added before each layer"),
    key("model.parametrization", OneOf(&["standard", "mup", "complete_p"]), "how init, updates and multipliers depend on the size").only(LLAMA),
    key("model.base_hidden_size", Count, "the width that the hyper-parameters were tuned at").only(LLAMA).and(SCALED),
    key("model.base_head_dim", Count, "the width of a head there").only(LLAMA).and(SCALED),
    key("model.base_num_hidden_layers", Count, "the depth that the hyper-parameters were tuned at").only(LLAMA).and(Parametrization(&["complete_p"])),

    key("init.scheme", OneOf(&["gpt2", "llama", "xavier", "kaiming", "small_init", "zero", "fixup", "skipinit", "rezero", "t_fixup", "deepnorm", "subln"]), "how initial weights are drawn"),
    key("init.from", InputPath, "the folder of a model to start from"),
    key("init.growth.depth", OneOf(&["stack", "interpolate", "zero_insert", "identity_insert", "lemon"]), "where added blocks come from").only(From),
    key("init.growth.width", OneOf(&["equal", "uneven", "aki", "random"]), "how copies share what they read").only(From),
    key("init.growth.residual", OneOf(&["copy", "zero_pad"]), "what new residual channels hold").only(From),
    key("init.growth.split_std", Number, "the deviation of an uneven split, in that of initial weights").only(From),
    key("init.growth.learn_steps", Count, "the steps in which the map is learned, 0 for none").only(From),
    key("init.growth.mask_steps", Count, "the steps in which masks over what was added rise, 0 for none").only(From),
    key("init.growth.moments", OneOf(&["map", "zero", "fresh"]), "what becomes of the optimizer's state").only(From),

    key("distill.teacher", InputPath, "the folder of a smaller model to learn from"),
    key("distill.weight", Number, "the teacher's weight at the first step").only(Teacher),
    key("distill.steps", Count, "the steps after which its weight is 0").only(Teacher),
    key("distill.decay", OneOf(&["linear", "cosine", "constant"]), "how its weight falls").only(Teacher),
    key("distill.temperature", Number, "the divisor of both models' logits").only(Teacher),

    key("data.tokens", InputPath, "a token file"),
    key("data.text", InputPath, "a text file"),
    key("data.sources", Tables(SOURCE), "the sources of a mixture, a table [[data.sources]] each"),
    key("data.stages", Tables(STAGE), "later weights of a mixture, a table [[data.stages]] each").only(Mixture),
    key("data.tokenizer", Tokenizer, "\"bytes\" or a tokenizer file"),
    key("data.validation_fraction", Number, "the part of the data kept for validation").only(OneSource),
    key("data.validation_tokens", InputPath, "a token file for validation").only(OneSource),
    key("data.packing", OneOf(&["contiguous", "contiguous_by_document", "document_aligned", "best_fit"]), "how documents are laid into rows"),
    key("data.mask_documents", Flag, "whether documents of one row do not see each other").only(Documents),

    key("batch.sequence_length", Count, "the tokens of one sequence").required(),
    key("batch.micro_batch_size", Count, "the sequences of one forward pass").required(),
    key("batch.micro_batches", Count, "the micro-batches of one step, over all ranks").required(),
    key("batch.ramp_steps", Count, "the steps over which the micro-batches grow, 0 for none"),
    key("batch.ramp_from", Count, "the micro-batches of the first step").only(Ramp),

    key("optim.rule", OneOf(ALL_RULES), "the update rule"),
    key("optim.lr", Number, "the peak learning rate"),
    key("optim.betas", Pair, "the two decay rates of the moments").only(WITH_BETAS),
    key("optim.eps", Number, "the epsilon in the denominator").only(WITH_EPS),
    key("optim.gamma", Number, "how much curvature a full step takes").only(SOPHIA),
    key("optim.hessian_every", Count, "the steps between two estimates of the curvature").only(SOPHIA),
    key("optim.hessian_clip_norm", Number, "the largest norm of the sampled gradient, 0 for no clipping").only(Rule(&["sophia_g"])),
    key("optim.probe", OneOf(&["rademacher", "gaussian"]), "the distribution of the random direction").only(Rule(&["sophia_h"])),
    key("optim.state_dtype", OneOf(&["master", "bf16"]), "how the optimizer's state is stored").only(Rule(&["adamw", "lion"])),
    key("optim.weight_decay", Number, "the decoupled weight decay"),
    key("optim.clip_norm", Number, "the largest global gradient norm, 0 for no clipping"),
    key("optim.on_change", OneOf(&["refuse", "reset"]), "what a resume with another rule does"),
    key("optim.decay_power", Number, "the power of the step by which the second moment forgets").only(ADAFACTOR),
    key("optim.step_scale", OneOf(&["relative", "plain"]), "how long a step is").only(ADAFACTOR),
    key("optim.beta3", Number, "the decay rate of the instability").only(Rule(&["came"])),
    key("optim.eps1", Number, "the least mean squared gradient").only(FACTORED),
    key("optim.eps2", Number, "the least root mean square of weights, or mean squared instability").only(FACTORED),
    key("optim.clip_threshold", Number, "the largest root mean square of an update").only(FACTORED),
    key("optim.momentum", Number, "the decay rate of the momentum").only(MUON),
    key("optim.nesterov", Flag, "whether to look one step ahead").only(MUON),
    key("optim.num_iterations", Count, "the Newton-Schulz iterations of an update").only(MUON),
    key("optim.scaling", OneOf(&["original", "match_rms_adamw"]), "how lr depends on a matrix's shape").only(MUON),
    key("optim.products", OneOf(&["master", "bf16"]), "what the iterations compute in").only(MUON),
    key("optim.rank", Count, "the singular directions of a matrix").only(Rule(&["galore"])),
    key("optim.scale", Number, "a factor on lr").only(Rule(&["galore"])),
    key("optim.refresh_every", Count, "the updates between two decompositions").only(Rule(&["galore", "soap"])),
    key("optim.covariance_beta", Number, "the decay rate of the covariances").only(Rule(&["soap"])),
    key("optim.max_basis_dim", Count, "the longest side that gets a basis").only(Rule(&["soap"])),
    key("optim.rest.lr", Number, "the peak learning rate of what the rule does not take").only(WITH_REST),
    key("optim.rest.betas", Pair, "its two decay rates").only(WITH_REST),
    key("optim.rest.eps", Number, "its epsilon").only(WITH_REST),
    key("optim.rest.weight_decay", Number, "its decoupled weight decay").only(WITH_REST),
    key("optim.groups.matrix.rule", OneOf(RULES), "the group's own update rule"),
    key("optim.groups.matrix.lr_multiplier", Number, "a factor on lr"),
    key("optim.groups.matrix.weight_decay_multiplier", Number, "a factor on weight_decay").only(Decay),
    key("optim.groups.embedding.rule", OneOf(RULES), "the group's own update rule"),
    key("optim.groups.embedding.lr_multiplier", Number, "a factor on lr"),
    key("optim.groups.embedding.weight_decay_multiplier", Number, "a factor on weight_decay").only(Decay),
    key("optim.groups.norm.rule", OneOf(RULES), "the group's own update rule"),
    key("optim.groups.norm.lr_multiplier", Number, "a factor on lr"),
    key("optim.groups.norm.weight_decay_multiplier", Number, "a factor on weight_decay").only(Decay),
    key("optim.groups.bias.rule", OneOf(RULES), "the group's own update rule").only(Biases),
    key("optim.groups.bias.lr_multiplier", Number, "a factor on lr").only(Biases),
    key("optim.groups.bias.weight_decay_multiplier", Number, "a factor on weight_decay").only(Biases).and(Decay),
    key("optim.groups.head.rule", OneOf(RULES), "the group's own update rule").only(OwnHead),
    key("optim.groups.head.lr_multiplier", Number, "a factor on lr").only(OwnHead),
    key("optim.groups.head.weight_decay_multiplier", Number, "a factor on weight_decay").only(OwnHead).and(Decay),
    key("optim.groups.scalar.rule", OneOf(RULES), "the group's own update rule").only(Scalars),
    key("optim.groups.scalar.lr_multiplier", Number, "a factor on lr").only(Scalars),
    key("optim.groups.scalar.weight_decay_multiplier", Number, "a factor on weight_decay").only(Scalars).and(Decay),

    key("schedule.kind", OneOf(&["constant", "cosine", "linear", "inverse_sqrt", "wsd"]), "the shape after the warm-up"),
    key("schedule.warmup_steps", Count, "the steps of linear warm-up"),
    key("schedule.final_ratio", Number, "the factor that the decay approaches").only(Schedule(&["cosine", "linear", "wsd"])),
    key("schedule.cooldown_fraction", Number, "the part of the run that cools down").only(Schedule(&["wsd"])),
    key("schedule.by", OneOf(&["steps", "tokens"]), "what places in the schedule are counted by"),
    key("schedule.mode", OneOf(&["continue", "fresh", "rewind"]), "how the schedule goes on from from_step"),
    key("schedule.from_step", Count, "the first step of the last phase, from 0"),
    key("schedule.rewind_to", Count, "the step whose place in the schedule the phase starts at").only(Phase).and(Mode("rewind")),
    key("schedule.rewarm_steps", Count, "the steps of a re-warm-up from from_step on").only(Phase),
    key("schedule.weight_decay", OneOf(&["constant", "linear", "cosine"]), "the shape of the weight decay").only(Decay),
    key("schedule.weight_decay_final_ratio", Number, "the factor that the weight decay approaches").only(DecayShape),

    key("loss.z_loss", Number, "the factor on the squared logarithm of the softmax's normalizer, 0 for none"),
    key("loss.label_smoothing", Number, "the part of the target's probability spread over the vocabulary, 0 for none"),

    key("memory.recompute", OneOf(&["none", "elementwise", "block"]), "what backward computes again"),
    key("memory.logits_rows", Count, "the rows of the head computed at once, 0 to have it chosen"),
    key("memory.optimizer", OneOf(&["device", "host"]), "where masters and optimizer state live"),
    key("gpu.fused", Flag, "whether layers use kernels of our own on a GPU"),
    key("gpu.attention", OneOf(&["auto", "flash", "efficient", "cudnn", "math"]), "the kernel of attention on a GPU"),
    key("gpu.fp8", OneOf(&["off", "tensor", "row"]), "what shares a scale in products of 8-bit numbers"),
    key("gpu.graphs", Flag, "whether a micro-step on a GPU is recorded once and then replayed"),
    key("parallel.zero", Count, "the ZeRO stage, 0 to 3"),
    key("parallel.shard_degree", Count, "the ranks that hold one copy of the sharded state, 0 for all"),
    key("parallel.reduction", OneOf(&["exact", "fast"]), "how gradients are summed"),
    key("parallel.prefetch_units", Count, "the units that stage 3 gathers ahead of their use"),
    key("parallel.keep_gathered_numel", Count, "the parameters up to which stage 3 leaves a unit whole"),
    key("parallel.backend", OneOf(&["auto", "mpi", "nccl"]), "what carries tensors between ranks"),
    key("parallel.threads", Count, "the threads of a rank, 0 for cores / local ranks"),
    key("parallel.check", Flag, "whether ranks compare their collective calls before each"),

    key("eval.every", Count, "the steps between evaluations, 0 for only at the end").only(Validation),
    key("eval.batches", Count, "the micro-batches of one evaluation, 0 for the whole split").only(Validation),

    key("checkpoint.every", Count, "the steps between checkpoints, 0 for only at the end"),
    key("checkpoint.keep_last", Count, "how many checkpoints stay"),
    key("checkpoint.keep_every", Count, "the steps whose multiples stay for good, 0 for none"),
    key("checkpoint.max_shard_bytes", Count, "the bytes of weights above which the model is stored in several files"),
    key("checkpoint.grace_seconds", Count, "the seconds from a request to stop in which a run must have saved, 0 for a step and a save"),
    key("checkpoint.resume", Flag, "whether to go on from the newest checkpoint in run.dir"),
    key("checkpoint.fallback", Flag, "whether to go on from an earlier checkpoint where the newest is damaged"),
    key("checkpoint.allow_changes", Words(Meaning::WORDS), "what a resume may change although it changes what the run means"),

    key("guard.non_finite", OneOf(POLICIES), "what a loss or gradient that is not finite leads to"),
    key("guard.spike_zscore", Number, "the robust z-score of a spike, 0 for none"),
    key("guard.spike", OneOf(POLICIES), "what a spike leads to").only(Spikes),
    key("guard.spike_window", Count, "the past steps that a spike stands out from").only(Spikes),
    key("guard.max_trips", Count, "the steps in a row that may go wrong").only(GoesOn),
    key("guard.snapshot_every", Count, "the steps between snapshots in host memory, 0 for none").only(Rewinds),
    key("guard.exclude_steps", Counts, "the steps, from 1, whose data is left out"),
    key("guard.black_box", Flag, "whether a step that goes wrong leaves a folder"),

    key("watchdog.stall_seconds", Number, "the seconds without progress of a stall, 0 for no watchdog"),
    key("watchdog.beat_seconds", Number, "the seconds between a rank's beats"),
    key("watchdog.address", Text, "the IP address to listen on for other hosts, \"\" to choose one"),
    key("metrics.log_every", Count, "the steps between log lines"),
    key("metrics.tensorboard", Flag, "whether to write TensorBoard files"),
    key("metrics.peak_tflops", Number, "the peak of one rank, 0 to have it measured"),
    key("profile.steps", Range, "the first and the last step that are traced, [0, 0] for none"),
    key("sample.tokens", Count, "the tokens of one sample, 0 for none"),
    key("sample.prompt", Text, "the text that a sample continues").only(Sampling),
    key("sample.temperature", Number, "the divisor of the logits, 0 for the largest").only(Sampling),
    key("sample.top_k", Count, "how many of the largest logits to draw from, 0 for all").only(Sampling).and(RandomSampling),

    key("growth", Stages, "tables [[growth]], one for each stage in which the model grows"),
];

/// Pairs of which at most one key may be set.
pub(super) const EXCLUSIVE: [(&str, &str); 4] = [
    ("data.tokens", "data.text"),
    ("data.tokens", "data.sources"),
    ("data.text", "data.sources"),
    ("data.validation_fraction", "data.validation_tokens"),
];

/// The key with this full path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether a path is a table of the schema, such as `optim.groups`.
pub(super) fn is_table(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}
