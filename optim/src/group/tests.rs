//! Defaults by role, partial overrides, refusals.

use super::{Groups, Role};

#[test]
fn only_norms_and_biases_do_not_decay() {
    let groups = Groups::default();
    for role in Role::ALL {
        let decay = if matches!(role, Role::Norm | Role::Bias) { 0.0 } else { 1.0 };
        assert_eq!(groups.of(role).weight_decay_multiplier, decay, "{role:?}");
        assert_eq!(groups.of(role).lr_multiplier, 1.0);
        assert_eq!(toml::Value::try_from(role).unwrap().as_str(), Some(role.name()));
    }
    groups.validate().unwrap();
}

#[test]
fn an_override_keeps_the_rest_of_its_role() {
    let groups: Groups = toml::from_str("norm.lr_multiplier = 0.5").unwrap();
    let norm = groups.of(Role::Norm);
    assert_eq!((norm.lr_multiplier, norm.weight_decay_multiplier), (0.5, 0.0));
    assert_eq!(groups.of(Role::Head), Groups::default().of(Role::Head));
    let text = toml::to_string(&groups).unwrap();
    assert_eq!(toml::from_str::<Groups>(&text).unwrap(), groups);
    assert!(toml::from_str::<Groups>("gain.lr_multiplier = 0.5").is_err());
    assert!(toml::from_str::<Groups>("norm.lr = 0.5").is_err());
}

#[test]
fn refusals_name_the_role() {
    let mut groups = Groups::default();
    groups.bias.weight_decay_multiplier = -1.0;
    assert_eq!(
        groups.validate().unwrap_err().to_string(),
        "optim.groups.bias.weight_decay_multiplier = -1 is out of range: expected \
         0 <= weight_decay_multiplier < inf; a usual value is 0"
    );
    let mut groups = Groups::default();
    groups.matrix.lr_multiplier = f64::INFINITY;
    assert!(groups.validate().unwrap_err().to_string().contains("optim.groups.matrix.lr_mult"));
}
