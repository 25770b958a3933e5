//! Owners and pieces against counts worked out by hand.

use grove_optim::{AdamW, AdamWConfig, MuonConfig, Role, Rule, WholeRuleConfig};
use grove_parallel::UnitLayout;
use grove_parallel::layout::ParamShape;
use tch::{Device, Kind};

use super::{Owner, Piece, owners, whole_unit};
use crate::model::units::{Init, ParamSpec, UnitSpec};
use crate::rules::Rules;
use crate::sharding::{Placement, Stage};

fn unit(name: &str, shapes: &[&[i64]]) -> UnitSpec {
    let param = |(i, shape): (usize, &&[i64])| ParamSpec {
        name: format!("{name}.{i}"),
        shape: shape.to_vec(),
        role: if shape.len() == 2 { Role::Matrix } else { Role::Norm },
        init: Init::Zeros,
    };
    let params = shapes.iter().enumerate().map(param).collect();
    UnitSpec { name: name.to_owned(), params, gradient_in_parts: false }
}

fn muon(units: &[UnitSpec]) -> Rules {
    let facts = units.iter().flat_map(|unit| &unit.params).map(|param| {
        let stored = grove_optim::Orientation::OutIn;
        let facts = grove_optim::ParamFacts::new(&param.shape, param.role, stored);
        (param.name.clone(), facts)
    });
    let rule = WholeRuleConfig::Muon(MuonConfig::default()).build().expect("a rule");
    let adamw = Rule::AdamW(AdamW::new(AdamWConfig::default()).expect("a rule"));
    Rules::whole(rule, facts.collect(), (grove_optim::Rules::all(adamw), 1.0))
}

fn layout(unit: &UnitSpec, degree: usize) -> UnitLayout {
    let shapes: Vec<ParamShape> = unit
        .params
        .iter()
        .map(|param| ParamShape { name: param.name.clone(), shape: param.shape.clone() })
        .collect();
    UnitLayout::new(&unit.name, &shapes, degree).expect("a layout")
}

#[test]
fn the_most_costly_goes_to_whoever_has_least_to_do() {
    // The norm is not taken; the largest of each unit is placed first.
    let shapes: [&[i64]; 4] = [&[64], &[64, 64], &[64, 256], &[64, 64]];
    let units = [unit("a", &shapes), unit("b", &shapes)];
    let rules = muon(&units);
    assert_eq!(owners(&units, &rules, 1), [[0, 0, 0], [0, 0, 0]]);
    // 4 n^2 m + 2 n^3 are 6 and 18 times 64^3: a's large one to 0, both small ones to 1; b's large
    // one to 1, then 0 has 18 and 1 has 30, so the small ones go to 0.
    assert_eq!(owners(&units, &rules, 2), [[1, 0, 1], [0, 1, 0]]);
    let loads = |ranks: usize| {
        let many: Vec<UnitSpec> = (0..24).map(|i| unit(&format!("{i}"), &shapes)).collect();
        let mut loads = vec![0; ranks];
        for owners in owners(&many, &muon(&many), ranks) {
            [6, 18, 6].iter().zip(owners).for_each(|(cost, owner)| loads[owner] += cost);
        }
        loads
    };
    for ranks in 2..=7 {
        let loads = loads(ranks);
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(most - least <= 18, "{ranks} ranks: {loads:?}");
    }
}

#[test]
fn pieces_cover_each_parameter_once_and_their_parts_do_not_overlap() {
    let unit = unit("a", &[&[64], &[48, 64], &[64, 100], &[30, 30]]);
    let rules = muon(std::slice::from_ref(&unit));
    for (degree, shard_degree) in [(1, 1), (3, 1), (4, 2), (3, 3), (6, 3)] {
        let layout = layout(&unit, degree);
        let owners = &owners(std::slice::from_ref(&unit), &rules, degree)[0];
        let place = Placement {
            stage: Stage::Gradients,
            degree,
            shard_degree,
            rank: degree - 1,
            ..Placement::alone()
        };
        let kind = (Kind::Float, Device::Cpu);
        let whole = whole_unit((&unit, &layout), &rules, owners, &place, kind);
        assert_eq!(whole.params.len(), 3);
        let mut parts = std::collections::BTreeMap::<_, Vec<_>>::new();
        for param in &whole.params {
            let shard_numel = layout.padded_numel() / shard_degree;
            let mut next = 0;
            for Piece { shard, param_range, shard_range, offset } in &param.pieces {
                assert_eq!(param_range.start, next);
                next = param_range.end;
                let in_unit = layout.params()[param.param].offset + param_range.start;
                assert_eq!(shard * shard_numel + shard_range.start, in_unit);
                assert_eq!(shard_range.len(), param_range.len());
                let part = parts.entry((param.owner.rank(&place), *shard)).or_default();
                part.push(*offset..offset + param_range.len());
            }
            assert_eq!(next, layout.params()[param.param].numel);
            assert_eq!(param.states.is_empty(), !param.owner.is_here(&place));
        }
        let longest = parts.values().map(|part| part.last().expect("a range").end).max();
        assert_eq!(longest, Some(whole.part_numel));
        for part in parts.values() {
            assert!(part.windows(2).all(|two| two[0].end == two[1].start), "{part:?}");
        }
    }
    let place = Placement { degree: 6, shard_degree: 3, rank: 4, ..Placement::alone() };
    assert_eq!(Owner::new(4, &place), Owner { replica: 1, coord: 1 });
    assert!(Owner::new(4, &place).is_here(&place));
}
