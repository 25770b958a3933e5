//! The `[optim]` table of a file, whole and wrong.

use super::Config;

const FILE: &str = "
rule = { name = 'adamw', weight_decay = 0.1 }
schedule = { lr = 6e-4, warmup_steps = 10, decay = { kind = 'cosine', final_ratio = 0.1 } }
";

#[test]
fn builds_and_round_trips() {
    let config: Config = toml::from_str(FILE).unwrap();
    assert_eq!(config.max_grad_norm, 1.0);
    let (rule, schedule) = config.build(100).unwrap();
    assert_eq!((rule.name(), schedule.lr(10)), ("adamw", 6e-4));
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
}

#[test]
fn refuses_unknown_keys_and_wrong_values() {
    assert!(toml::from_str::<Config>(&format!("clip = 1.0\n{FILE}")).is_err());
    let config: Config = toml::from_str(&format!("max_grad_norm = 0.0\n{FILE}")).unwrap();
    assert_eq!(
        config.build(100).unwrap_err().to_string(),
        "optim.max_grad_norm = 0 is out of range: expected 0 < max_grad_norm < inf; a usual value \
         is 1"
    );
}
