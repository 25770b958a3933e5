//! Products against sums in f64, at shapes that leave rests in every direction.

use half::bf16;

use super::{Finish, Multiplier, Operand, Output};
use crate::kernel::pool::Pool;
use crate::kernel::testing::{exact, sample};

/// The error of a chain of f32 additions, relative to the sum of the terms' magnitudes: far below
/// what a single wrong term would make.
const CHAIN: f64 = 1e-5;
/// One rounding to 8 significant bits.
const ROUNDING: f64 = 1.0 / 256.0;

/// Rows, summed, columns: whole tiles and panels, rests, odd sums, and sums of several parts.
const SHAPES: [[usize; 3]; 8] = [
    [8, 2, 48],
    [1, 34, 1],
    [15, 66, 65],
    [200, 32, 130],
    [13, 31, 200],
    [50, 2050, 70],
    [395, 4100, 3],
    [23, 5001, 145],
];

struct Case {
    shape: [usize; 3],
    a: Vec<bf16>,
    b: Vec<bf16>,
    transposed: [bool; 2],
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let ways = [[false, false], [false, true], [true, false], [true, true]];
        let cases = SHAPES.into_iter().flat_map(move |shape| ways.map(|way| (shape, way)));
        cases.map(|(shape, transposed)| {
            let [m, k, n] = shape;
            Self { shape, a: sample(m * k, 1.0), b: sample(k * n, 1.0), transposed }
        })
    }

    fn operands(&self) -> (Operand<'_>, Operand<'_>) {
        let [m, k, n] = self.shape;
        let [first, second] = self.transposed;
        (
            Operand { elements: &self.a, rows: m, columns: k, transposed: first },
            Operand { elements: &self.b, rows: k, columns: n, transposed: second },
        )
    }

    /// Each element and the sum of its terms' magnitudes.
    fn expected(&self) -> Vec<(f64, f64)> {
        let [m, k, n] = self.shape;
        let (a, b) = (exact(&self.a), exact(&self.b));
        let at = |transposed, row: usize, column: usize, rows: usize, columns: usize| {
            if transposed { column * rows + row } else { row * columns + column }
        };
        let element = |row: usize, column: usize| {
            (0..k).fold((0.0, 0.0), |(sum, size), k_at| {
                let left = a[at(self.transposed[0], row, k_at, m, k)];
                let right = b[at(self.transposed[1], k_at, column, k, n)];
                (sum + left * right, size + (left * right).abs())
            })
        };
        (0..m * n).map(|index| element(index / n, index % n)).collect()
    }

    fn multiply(&self, threads: usize, output: Output<'_>) {
        let (left, right) = self.operands();
        let mut multiplier = Multiplier::detect(Pool::new(threads)).expect("asked before");
        multiplier.multiply(left, right, output);
    }
}

/// Whether this processor has the kernel; elsewhere libtorch multiplies.
fn is_here() -> bool {
    Multiplier::detect(Pool::new(1)).is_some()
}

#[test]
fn wide_products_are_those_of_f64() {
    for case in Case::all().filter(|_| is_here()) {
        let expected = case.expected();
        let mut found = vec![0.5f32; expected.len()];
        case.multiply(2, Output::Wide { to: &mut found, add: false, rounds: false });
        for (found, (sum, size)) in found.iter().zip(&expected) {
            let error = (f64::from(*found) - sum).abs();
            assert!(
                error <= CHAIN * size,
                "{:?} {:?}: {found}, not {sum}",
                case.shape,
                case.transposed
            );
        }
    }
}

#[test]
fn wide_products_are_added() {
    for case in Case::all().filter(|_| is_here()) {
        let mut alone = vec![0.0f32; case.shape[0] * case.shape[2]];
        case.multiply(2, Output::Wide { to: &mut alone, add: false, rounds: false });
        let mut found = vec![0.75f32; alone.len()];
        case.multiply(2, Output::Wide { to: &mut found, add: true, rounds: false });
        assert!(found.iter().zip(&alone).all(|(found, alone)| *found == 0.75 + alone));
    }
}

#[test]
fn products_are_rounded_before_they_are_added() {
    for case in Case::all().filter(|_| is_here()) {
        let mut alone = vec![bf16::ZERO; case.shape[0] * case.shape[2]];
        case.multiply(2, Output::Rounded { to: &mut alone, base: None, bias: None, finish: None });
        let mut found = vec![0.3f32; alone.len()];
        case.multiply(2, Output::Wide { to: &mut found, add: true, rounds: true });
        assert!(found.iter().zip(&alone).all(|(found, alone)| *found == 0.3 + alone.to_f32()));
        case.multiply(2, Output::Wide { to: &mut found, add: false, rounds: true });
        assert!(found.iter().zip(&alone).all(|(found, alone)| *found == alone.to_f32()));
    }
}

#[test]
fn products_are_rounded_once_after_base_and_bias() {
    for case in Case::all().filter(|_| is_here()) {
        let ([m, _, n], expected) = (case.shape, case.expected());
        let (base, bias) = (sample::<bf16>(m * n, 3.0), sample::<bf16>(n, 2.0));
        let mut found = vec![bf16::ZERO; m * n];
        let (base, bias) = (Some(&base[..]), Some(&bias[..]));
        case.multiply(2, Output::Rounded { to: &mut found, base, bias, finish: None });
        let (base, bias) = (base.expect("given"), bias.expect("given"));
        for (index, (sum, size)) in expected.iter().enumerate() {
            let sum = sum + f64::from(base[index].to_f32()) + f64::from(bias[index % n].to_f32());
            let error = (f64::from(found[index].to_f32()) - sum).abs();
            assert!(error <= ROUNDING * sum.abs() + CHAIN * (size + 5.0), "{:?}", case.shape);
        }
    }
}

#[test]
fn a_rounded_product_is_the_wide_one_rounded() {
    for case in Case::all().filter(|_| is_here()) {
        let mut wide = vec![0.0f32; case.shape[0] * case.shape[2]];
        case.multiply(1, Output::Wide { to: &mut wide, add: false, rounds: false });
        let mut found = vec![bf16::ZERO; wide.len()];
        case.multiply(1, Output::Rounded { to: &mut found, base: None, bias: None, finish: None });
        assert!(found.iter().zip(&wide).all(|(found, wide)| *found == bf16::from_f32(*wide)));
    }
}

#[test]
fn threads_and_layouts_change_no_bit() {
    for case in Case::all().filter(|_| is_here()) {
        let mut one = vec![0.0f32; case.shape[0] * case.shape[2]];
        case.multiply(1, Output::Wide { to: &mut one, add: false, rounds: false });
        for threads in [2, 3, 7] {
            let mut many = vec![0.0f32; one.len()];
            case.multiply(threads, Output::Wide { to: &mut many, add: false, rounds: false });
            assert!(one.iter().zip(&many).all(|(one, many)| one.to_bits() == many.to_bits()));
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let [m, k, n] = [23, 2500, 100];
    let (a, b) = (sample::<bf16>(m * k, 1.0), sample::<bf16>(k * n, 1.0));
    let right = Operand { elements: &b, rows: k, columns: n, transposed: false };
    let Some(mut multiplier) = Multiplier::detect(Pool::new(2)) else { return };
    let mut product = |rows: std::ops::Range<usize>| {
        let mut to = vec![0.0f32; rows.len() * n];
        let elements = &a[rows.start * k..rows.end * k];
        let left = Operand { elements, rows: rows.len(), columns: k, transposed: false };
        multiplier.multiply(left, right, Output::Wide { to: &mut to, add: false, rounds: false });
        to
    };
    let all = product(0..m);
    assert_eq!(product(9..14), all[9 * n..14 * n]);
}

/// A product too large for all threads to share a packed right operand has the same bits as its
/// columns apart.
#[test]
fn panels_of_a_thread_are_those_of_all() {
    let [m, k, n] = [20, 2100, 4200];
    let (a, b) = (sample::<bf16>(m * k, 1.0), sample::<bf16>(k * n, 1.0));
    let left = Operand { elements: &a, rows: m, columns: k, transposed: false };
    let Some(mut multiplier) = Multiplier::detect(Pool::new(2)) else { return };
    let mut product = |columns: std::ops::Range<usize>| {
        let mut to = vec![0.0f32; m * columns.len()];
        let elements = &b[columns.start * k..columns.end * k];
        let right = Operand { elements, rows: k, columns: columns.len(), transposed: true };
        multiplier.multiply(left, right, Output::Wide { to: &mut to, add: false, rounds: false });
        to
    };
    let (all, some) = (product(0..n), product(4100..n));
    let expected = all.chunks_exact(n).flat_map(|row| &row[4100..]);
    assert!(expected.eq(&some), "the last 100 columns");
}

/// Doubles each element and adds its row's number, so that it shows whether and how often it ran.
#[derive(Debug)]
struct Numbered {
    columns: usize,
}

impl Finish for Numbered {
    fn finish(&self, first_row: usize, rows: &mut [bf16]) {
        for (row, elements) in (first_row..).zip(rows.chunks_exact_mut(self.columns)) {
            for element in elements {
                *element = bf16::from_f32(2.0 * element.to_f32() + row as f32);
            }
        }
    }
}

/// Shapes of both ways to share out the work: panels for all threads, and panels of a thread.
#[test]
fn each_row_is_finished_once() {
    for [m, k, n] in [[1, 3, 5], [70, 64, 100], [300, 2100, 4200]] {
        let (a, b) = (sample::<bf16>(m * k, 1.0), sample::<bf16>(k * n, 1.0));
        let left = Operand { elements: &a, rows: m, columns: k, transposed: false };
        let right = Operand { elements: &b, rows: k, columns: n, transposed: true };
        let Some(mut multiplier) = Multiplier::detect(Pool::new(3)) else { return };
        let mut product = |finish| {
            let mut to = vec![bf16::ZERO; m * n];
            let output = Output::Rounded { to: &mut to, base: None, bias: None, finish };
            multiplier.multiply(left, right, output);
            to
        };
        let (numbered, mut expected) = (Numbered { columns: n }, product(None));
        numbered.finish(0, &mut expected);
        assert_eq!(product(Some(&numbered)), expected, "{m} {k} {n}");
    }
}
