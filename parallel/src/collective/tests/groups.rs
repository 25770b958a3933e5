//! Groups of some ranks: all operations in them, their place in the queue, and what is refused.

use super::*;

/// Every operation once; rank `r` of the group brings `10^r` times small numbers, so that each
/// result tells who took part.
fn every_operation(ranks: &dyn Collective, weights: &[i64]) {
    let (rank, n) = (ranks.rank(), ranks.degree());
    let sum: i64 = weights.iter().sum();
    let float = |values: &[i64]| tensor(Kind::Float, values);
    let own = weights[rank];

    let whole = float(&[own, 2 * own]);
    let first = ranks.all_reduce(&whole, Reduction::Sum, "sum").unwrap();
    let parts: Vec<i64> = (0..n as i64).map(|part| own * (part + 1)).collect();
    let (input, shard, added) = (float(&parts), float(&[0]), float(&[5]));
    let second = ranks.reduce_scatter(&input, &shard, Reduction::Sum, "parts").unwrap();
    let third = ranks.ordered_reduce_scatter(&input, &added, Onto::Output, "terms").unwrap();
    let (gathered, swapped, given) = (float(&vec![0; n]), float(&vec![0; n]), float(&[own]));
    let fourth = ranks.all_gather(&float(&[own]), &gathered, "all").unwrap();
    let fifth = ranks.all_to_all(&input, &swapped, "swap").unwrap();
    let sixth = ranks.broadcast(&given, n - 1, "last").unwrap();
    let last = ranks.barrier("end").unwrap();
    for handle in [first, second, third, fourth, fifth, sixth, last] {
        handle.wait().unwrap();
    }
    let place = rank as i64 + 1;
    assert_eq!(values(&whole), [sum, 2 * sum]);
    assert_eq!(values(&shard), [sum * place]);
    assert_eq!(values(&added), [sum * place + 5]);
    assert_eq!(values(&gathered), weights);
    assert_eq!(values(&swapped), weights.iter().map(|w| w * place).collect::<Vec<_>>());
    assert_eq!(values(&given), [weights[n - 1]]);
}

#[test]
fn a_grid_of_two_by_two_and_the_whole() {
    on_ranks(4, |ranks| {
        let rank = ranks.rank();
        let row = [rank / 2 * 2, rank / 2 * 2 + 1];
        let column = [rank % 2, rank % 2 + 2];
        let rows = ranks.group(&row, "rows").unwrap();
        let columns = ranks.group(&column, "columns").unwrap();
        assert_eq!((rows.rank(), rows.degree()), (rank % 2, 2));
        assert_eq!((columns.rank(), columns.degree()), (rank / 2, 2));
        for _ in 0..3 {
            every_operation(&*rows, &row.map(|r| 10i64.pow(r as u32)));
            every_operation(ranks, &[1, 10, 100, 1000]);
            every_operation(&*columns, &column.map(|r| 10i64.pow(r as u32)));
        }
    });
}

#[test]
fn uneven_groups_groups_of_groups_and_of_one() {
    on_ranks(4, |ranks| {
        let of =
            |members: &[usize]| members.iter().map(|&r| 10i64.pow(r as u32)).collect::<Vec<_>>();
        let (rank, three) = (ranks.rank(), [0, 1, 3]);
        if rank == 2 {
            let alone = ranks.group(&[2], "three and one").unwrap();
            return every_operation(&*alone, &of(&[2]));
        }
        let group = ranks.group(&three, "three and one").unwrap();
        every_operation(&*group, &of(&three));
        // Within the group: its ranks 0 and 2 are 0 and 3 of the run.
        let pair: &[usize] = if group.rank() == 1 { &[1] } else { &[0, 2] };
        let inner = group.group(pair, "pair").unwrap();
        drop(group);
        every_operation(&*inner, &of(if rank == 1 { &[1] } else { &[0, 3] }));
    });
    let whole = LocalCollective::new();
    let group = whole.group(&[0], "alone").unwrap();
    drop(whole);
    every_operation(&*group, &[7]);
    assert_eq!(group.ledger().totals().calls(), 8, "with the all-gather that made the group");
}

#[test]
fn calls_of_a_group_take_what_those_of_the_whole_bring() {
    on_ranks(4, |ranks| {
        let first = ranks.rank() / 2 * 2;
        let pair = ranks.group(&[first, first + 1], "pairs").unwrap();
        let value = tensor(Kind::Int64, &[1]);
        // All are queued before any is waited for: 4, then 8, then 32.
        let calls = [ranks, &*pair, ranks].map(|by| by.all_reduce(&value, Reduction::Sum, "next"));
        for call in calls {
            call.unwrap().wait().unwrap();
        }
        assert_eq!(values(&value), [32]);
        assert_eq!(ranks.ledger().totals().by_operation["all_reduce"].calls, 3, "one ledger");
    });
}

#[test]
fn lists_that_are_no_group_are_refused() {
    let ranks = ThreadGroup::new(2);
    let text = |list: &[usize]| ranks[1].group(list, "pairs").err().unwrap().to_string();
    assert_eq!(
        text(&[0]),
        "group `pairs`: [0] is not a group of rank 1 of 2; give ascending ranks below 2 with 1 \
         among them"
    );
    for list in [&[][..], &[1, 0], &[1, 1], &[1, 2]] {
        assert!(text(list).contains("is not a group of rank 1 of 2"), "{list:?}");
    }
    on_ranks(3, |ranks| {
        let list = [&[0, 1][..], &[1, 2], &[2]][ranks.rank()];
        assert_eq!(
            ranks.group(list, "pairs").err().unwrap().to_string(),
            "group `pairs`: rank 0 gives [0, 1] but rank 1 gives [1, 2]; all ranks of a group \
             must give the same ranks"
        );
        ranks.barrier("the ranks can go on").unwrap().wait().unwrap();
    });
}

#[test]
fn errors_of_a_group_name_ranks_of_the_run() {
    on_ranks(4, |ranks| {
        let first = ranks.rank() / 2 * 2;
        let pair = ranks.group(&[first, first + 1], "pairs").unwrap();
        if first == 0 {
            return;
        }
        let name = ["a", "b"][pair.rank()];
        let error = pair.barrier(name).unwrap().wait().unwrap_err();
        assert!(matches!(error, Error::CallsDiffer { first_rank: 2, second_rank: 3, .. }));
        assert_eq!(ranks.barrier("later").unwrap_err(), error, "the failure stays");
    });
    on_ranks(3, |ranks| {
        let list: &[usize] = if ranks.rank() == 0 { &[0] } else { &[1, 2] };
        let group = ranks.group(list, "two").unwrap();
        if ranks.rank() == 1 {
            let error = group.barrier("never").and_then(Handle::wait).unwrap_err();
            assert!(matches!(error, Error::PeerLeft { rank: 2, .. }), "{error}");
        }
    });
}

#[test]
fn calls_of_two_groups_in_crossed_order_are_refused() {
    on_ranks(2, |ranks| {
        let alone = ranks.group(&[ranks.rank()], "alone").unwrap();
        let pair = ranks.group(&[0, 1], "pair").unwrap();
        // A group of the same ranks is the same as the whole here; one of fewer waits for nobody.
        let calls = [alone.barrier("own"), pair.barrier("both"), ranks.barrier("both")];
        calls.into_iter().for_each(|call| call.unwrap().wait().unwrap());
    });
    on_ranks(3, |ranks| {
        let list: &[usize] = if ranks.rank() == 2 { &[2] } else { &[0, 1] };
        let pair = ranks.group(list, "pair").unwrap();
        let error = match ranks.rank() {
            0 => pair.barrier("pair").unwrap().wait().unwrap_err(),
            _ => ranks.barrier("whole").and_then(Handle::wait).unwrap_err(),
        };
        assert!(matches!(error, Error::CallsDiffer { .. }), "{error}");
    });
}
