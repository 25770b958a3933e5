//! Checks of the settings against the schema: unknown keys, wrong types, keys without effect and
//! missing keys, all of them at once.

use std::path::{Path, PathBuf};

use toml::Value;

use super::error::ConfigError;
use super::layers::{Origin, Settings, described};
use super::near;
use super::schema::{self, Applies, EXCLUSIVE, KEYS, Key, Kind};
use super::tables;

/// Checks `settings` and brings them into their final form: keys that a higher layer has made
/// pointless are dropped, and input paths are resolved.
///
/// `file` is the run's own file, which missing keys are reported in.
pub(super) fn check(settings: &mut Settings, file: &Path) -> Vec<ConfigError> {
    let mut problems = known_and_typed(settings);
    problems.extend(keep_one_of_each_pair(settings));
    problems.extend(drop_or_refuse_pointless(settings));
    problems.extend(missing(settings, file));
    if problems.is_empty() {
        resolve_input_paths(settings);
    }
    problems
}

fn known_and_typed(settings: &Settings) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    for (path, setting) in &settings.by_path {
        let origin = setting.origin.to_string();
        let wrong = |key: &str, expected: String, found: String| ConfigError::WrongType {
            key: key.to_owned(),
            origin: origin.clone(),
            expected,
            found,
        };
        if let Some(key) = schema::find(path) {
            if let Some(expected) = mismatch(key.kind, &setting.value) {
                problems.push(wrong(path, expected, described(&setting.value)));
            } else if key.kind == Kind::Stages {
                problems.extend(super::stages::problems(&setting.value, &origin));
            } else if let Kind::Tables(keys) = key.kind {
                problems.extend(tables::problems((path, keys), &setting.value, &origin));
            }
        } else if schema::is_table(path) {
            problems.push(wrong(path, "a table".to_owned(), described(&setting.value)));
        } else if let Some(scalar) = scalar_above(path) {
            problems.push(wrong(scalar.path, type_name(scalar.kind), "a table".to_owned()));
        } else {
            let nearest = near::nearest(path).map(str::to_owned);
            problems.push(ConfigError::UnknownKey { key: path.clone(), origin, nearest });
        }
    }
    problems
}

/// The known key that `path` treats as a table.
fn scalar_above(path: &str) -> Option<&'static Key> {
    let dots = path.match_indices('.').map(|(at, _)| &path[..at]);
    dots.into_iter().find_map(schema::find)
}

/// What was expected, if the value is not that.
pub(super) fn mismatch(kind: Kind, value: &Value) -> Option<String> {
    let fits = match kind {
        Kind::Count => value.as_integer().is_some_and(|integer| integer >= 0),
        Kind::Number => is_number(value),
        Kind::Pair => value.as_array().is_some_and(|v| v.len() == 2 && v.iter().all(is_number)),
        Kind::Counts => value.as_array().is_some_and(|values| {
            values.iter().all(|value| value.as_integer().is_some_and(|integer| integer >= 0))
        }),
        Kind::Range => {
            let is_count = |value: &Value| value.as_integer().is_some_and(|integer| integer >= 0);
            value.as_array().is_some_and(|v| v.len() == 2 && v.iter().all(is_count))
        }
        Kind::Flag => value.is_bool(),
        Kind::Text => value.is_str(),
        Kind::InputPath | Kind::Tokenizer => value.as_str().is_some_and(|text| !text.is_empty()),
        Kind::OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
        Kind::Words(words) => value.as_array().is_some_and(|list| {
            list.iter().all(|word| word.as_str().is_some_and(|word| words.contains(&word)))
        }),
        Kind::Stages => value.as_array().is_some_and(|v| v.iter().all(Value::is_table)),
        Kind::Weights => value.as_table().is_some_and(|t| t.iter().all(|(_, v)| is_number(v))),
        Kind::Tables(_) => value.as_array().is_some_and(|v| v.iter().all(Value::is_table)),
    };
    if fits {
        return None;
    }
    let meant = match (kind, value) {
        (Kind::OneOf(words), Value::String(text)) => near::nearest_word(text, words),
        _ => None,
    };
    let hint = meant.map_or_else(String::new, |word| format!(" (did you mean {word:?}?)"));
    Some(type_name(kind) + &hint)
}

fn is_number(value: &Value) -> bool {
    value.is_integer() || value.as_float().is_some_and(f64::is_finite)
}

pub(super) fn type_name(kind: Kind) -> String {
    match kind {
        Kind::Count => "an integer of at least 0".to_owned(),
        Kind::Number => "a finite number".to_owned(),
        Kind::Counts => "an array of integers of at least 0".to_owned(),
        Kind::Pair => "an array of two finite numbers".to_owned(),
        Kind::Range => "an array of two integers of at least 0".to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Text => "a string".to_owned(),
        Kind::InputPath => "the path of a file".to_owned(),
        Kind::Tokenizer => "\"bytes\" or the path of a file".to_owned(),
        Kind::Stages => "tables [[growth]]".to_owned(),
        Kind::OneOf(words) => {
            let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            quoted.join(" or ")
        }
        Kind::Words(words) => {
            let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            format!("an array of any of {}", quoted.join(", "))
        }
        Kind::Weights => "a table of numbers by name, such as { web = 0.7, code = 0.3 }".to_owned(),
        Kind::Tables(_) => "an array of tables".to_owned(),
    }
}

/// Of two exclusive keys the higher layer's stays; in one layer they are an error.
fn keep_one_of_each_pair(settings: &mut Settings) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    for (first, second) in EXCLUSIVE {
        let (Some(a), Some(b)) = (settings.by_path.get(first), settings.by_path.get(second)) else {
            continue;
        };
        if a.layer == b.layer {
            problems.push(ConfigError::Exclusive {
                first: first.to_owned(),
                second: second.to_owned(),
                origin: a.origin.to_string(),
            });
        }
        let lower = if a.layer < b.layer { first } else { second };
        settings.by_path.remove(lower);
    }
    problems
}

/// A key that cannot take effect is dropped if a higher layer took its effect away (`--set
/// optim.rule=lion` over a file with `optim.eps`), else it is an error.
fn drop_or_refuse_pointless(settings: &mut Settings) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    let mut pointless = Vec::new();
    for (path, setting) in &settings.by_path {
        let Some(key) = schema::find(path) else { continue };
        let Some(obstacle) = key.applies.iter().find_map(|applies| obstacle(settings, *applies))
        else {
            continue;
        };
        let cause = settings.by_path.get(obstacle.key);
        if cause.is_some_and(|cause| cause.layer > setting.layer) {
            pointless.push(path.clone());
        } else {
            problems.push(ConfigError::NoEffect {
                key: path.clone(),
                origin: setting.origin.to_string(),
                because: obstacle.because,
            });
        }
    }
    for path in pointless {
        settings.by_path.remove(&path);
    }
    problems
}

fn missing(settings: &Settings, file: &Path) -> Vec<ConfigError> {
    let wanted = KEYS.iter().filter(|key| key.required && !settings.by_path.contains_key(key.path));
    let applying = wanted.filter(|key| match key.applies[0] {
        // With the family unknown, its keys are not missed: `model_type` itself is.
        Applies::Family(family) => settings.text("model.model_type") == Some(family),
        _ => true,
    });
    let origin = file.display().to_string();
    applying
        .map(|key| ConfigError::MissingKey {
            key: key.path.to_owned(),
            origin: origin.clone(),
            about: key.about.to_owned(),
        })
        .collect()
}

/// Why a key cannot take effect, and which key decides it.
struct Obstacle {
    key: &'static str,
    because: String,
}

fn obstacle(settings: &Settings, applies: Applies) -> Option<Obstacle> {
    let word = |key, default| settings.text(key).unwrap_or(default);
    let blocked = |holds: bool, key, because: String| (!holds).then_some(Obstacle { key, because });
    let one_of = |key, default, wanted: &[&str]| {
        let own: &str = word(key, default);
        blocked(wanted.contains(&own), key, format!("{key} = {own:?}"))
    };
    match applies {
        Applies::Always => None,
        Applies::Family(family) => one_of("model.model_type", family, &[family]),
        Applies::Rule(rules) => one_of("optim.rule", super::OptimPlan::DEFAULT_RULE, rules),
        Applies::Schedule(kinds) => one_of("schedule.kind", super::Schedule::DEFAULT_KIND, kinds),
        Applies::Parametrization(wanted) => one_of("model.parametrization", "standard", wanted),
        Applies::Mode(wanted) => one_of("schedule.mode", "continue", &[wanted]),
        Applies::DecayShape => one_of("schedule.weight_decay", "constant", &["linear", "cosine"]),
        Applies::OneSource | Applies::Mixture | Applies::Documents => of_data(settings, applies),
        Applies::Validation => validation(settings),
        Applies::Phase => {
            let set = settings.by_path.contains_key("schedule.from_step");
            let because = "schedule.from_step is not set".to_owned();
            blocked(set, "schedule.from_step", because)
        }
        Applies::Biases => {
            let family = word("model.model_type", "gpt2");
            let because = format!("model.model_type = {family:?} has no biases");
            blocked(family == "gpt2", "model.model_type", because)
        }
        Applies::OwnHead => own_head(settings),
        Applies::Scalars => scalars(settings),
        Applies::RopeType(types) => {
            let key = "model.rope_scaling.rope_type";
            let own = word(key, "");
            let because = if own.is_empty() {
                format!("{key} is not set")
            } else {
                format!("{key} = {own:?}")
            };
            blocked(types.contains(&own), key, because)
        }
        Applies::From => {
            let some = settings.by_path.contains_key("init.from");
            blocked(some, "init.from", "init.from is not set".to_owned())
        }
        Applies::Teacher => {
            let some = settings.by_path.contains_key("distill.teacher");
            blocked(some, "distill.teacher", "distill.teacher is not set".to_owned())
        }
        Applies::GoesOn | Applies::Rewinds => guarded(settings, applies),
        Applies::Decay => {
            let rest = settings.number("optim.rest.weight_decay").unwrap_or(0.0);
            let decay = settings.number("optim.weight_decay").unwrap_or(1.0).max(rest);
            blocked(decay != 0.0, "optim.weight_decay", "optim.weight_decay = 0".to_owned())
        }
        Applies::Ramp | Applies::Sampling | Applies::RandomSampling | Applies::Spikes => {
            switched_off(settings, applies)
        }
    }
}

/// What a number of 0 switches off.
fn switched_off(settings: &Settings, applies: Applies) -> Option<Obstacle> {
    let (key, default, because) = match applies {
        Applies::Ramp => ("batch.ramp_steps", 0.0, "batch.ramp_steps = 0"),
        Applies::RandomSampling => {
            ("sample.temperature", 1.0, "sample.temperature = 0 takes the largest logit")
        }
        Applies::Spikes => {
            ("guard.spike_zscore", 0.0, "guard.spike_zscore = 0 looks for no spikes")
        }
        _ => ("sample.tokens", 0.0, "sample.tokens = 0"),
    };
    let is_off = settings.number(key).unwrap_or(default) == 0.0;
    is_off.then(|| Obstacle { key, because: because.to_owned() })
}

/// What goes wrong may skip or rewind, at a spike too where spikes are looked for.
fn guarded(settings: &Settings, applies: Applies) -> Option<Obstacle> {
    let non_finite = settings.text("guard.non_finite").unwrap_or("stop");
    let looks = settings.number("guard.spike_zscore").is_some_and(|zscore| zscore != 0.0);
    let spike = settings.text("guard.spike").unwrap_or("skip");
    let fits = |policy| match applies {
        Applies::Rewinds => policy == "rewind",
        _ => policy != "stop",
    };
    let wanted = if applies == Applies::Rewinds { "rewinds" } else { "skips or rewinds" };
    let because = format!("guard.non_finite = {non_finite:?} and no spike {wanted}");
    let holds = fits(non_finite) || (looks && fits(spike));
    (!holds).then_some(Obstacle { key: "guard.non_finite", because })
}

/// The conditions of `[data]` itself.
fn of_data(settings: &Settings, applies: Applies) -> Option<Obstacle> {
    let is_set = |key: &str| settings.by_path.contains_key(key);
    let (holds, key, because) = match applies {
        Applies::OneSource => {
            let because = "data.sources is set, whose tables have this key".to_owned();
            (!is_set("data.sources"), "data.sources", because)
        }
        Applies::Mixture => {
            let cause = if is_set("data.text") { "data.text" } else { "data.tokens" };
            (is_set("data.sources"), cause, "data.sources is not set".to_owned())
        }
        _ => {
            let packing = settings.text("data.packing").unwrap_or("contiguous");
            let because = format!("data.packing = {packing:?} does not mind documents");
            (packing != "contiguous", "data.packing", because)
        }
    };
    (!holds).then_some(Obstacle { key, because })
}

fn validation(settings: &Settings) -> Option<Obstacle> {
    let keys = ["data.validation_fraction", "data.validation_tokens"];
    let is_set = |key: &str| settings.by_path.contains_key(key);
    let (some, key, because) = match is_set("data.sources") {
        true => (
            tables::have_validation(settings),
            "data.sources",
            "no table of data.sources has validation_fraction or validation_tokens",
        ),
        false => (
            keys.into_iter().any(is_set),
            keys[0],
            "neither data.validation_fraction nor data.validation_tokens is set",
        ),
    };
    (!some).then(|| Obstacle { key, because: because.to_owned() })
}

fn scalars(settings: &Settings) -> Option<Obstacle> {
    let scheme = settings.text("init.scheme").unwrap_or("gpt2");
    let gain = settings.text("model.residual.gain").unwrap_or("none");
    let biases = settings.by_path.get("model.residual.scalar_biases");
    let biases = biases.and_then(|setting| setting.value.as_bool()).unwrap_or(false);
    let has = gain != "none" || biases || ["fixup", "skipinit", "rezero"].contains(&scheme);
    let because = format!(
        "init.scheme = {scheme:?} and model.residual.gain = {gain:?} bring no learned numbers"
    );
    (!has).then_some(Obstacle { key: "init.scheme", because })
}

fn own_head(settings: &Settings) -> Option<Obstacle> {
    let tie = settings.by_path.get("model.tie_word_embeddings");
    if settings.text("model.model_type") == Some("gpt2") {
        let because = "the head of model.model_type = \"gpt2\" is its embedding".to_owned();
        return Some(Obstacle { key: "model.model_type", because });
    }
    let tied = tie.and_then(|setting| setting.value.as_bool()).unwrap_or(false);
    let because = "model.tie_word_embeddings = true makes the head the embedding".to_owned();
    tied.then_some(Obstacle { key: "model.tie_word_embeddings", because })
}

/// An input path stays as written if it exists from the current directory, else becomes relative
/// to the folder of the file that wrote it if it exists there, else stays as written.
fn resolve_input_paths(settings: &mut Settings) {
    for (path, setting) in &mut settings.by_path {
        let kind = schema::find(path).map(|key| key.kind);
        if let (Some(Kind::Tables(keys)), Origin::File(file)) = (kind, &setting.origin) {
            tables::resolve_input_paths(keys, &mut setting.value, file);
        }
        let (Value::String(written), Origin::File(file)) = (&setting.value, &setting.origin) else {
            continue;
        };
        let is_path = match kind {
            Some(Kind::InputPath) => true,
            Some(Kind::Tokenizer) => written != "bytes",
            _ => false,
        };
        if let (true, Some(beside)) = (is_path, beside(file, written)) {
            setting.value = Value::String(beside);
        }
    }
}

/// A path relative to the folder of `file`, if it exists there and not from the current directory.
pub(super) fn beside(file: &Path, written: &str) -> Option<String> {
    let beside: PathBuf = file.with_file_name("").join(written);
    let is_there = !Path::new(written).exists() && beside.exists();
    is_there.then(|| beside.display().to_string())
}
