//! The kernels' source, without a GPU: NVRTC takes it, and compiled for the host it has the bits of
//! the CPU's rules. What a host lacks is said, and the test passes.
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

use std::path::Path;
use std::process::Command;

use libloading::Library;

use super::source::{Form, Numbers, Range, numbers, source};
use super::{Rule, compile};
use crate::error::Error;
use crate::real::Real;
use crate::sample::{Buffers, SCALARS, Stored, rules};
use crate::state::{StateKind, StateSpec, Storage};
use crate::{AdamWConfig, RuleConfig, Scalars, StateDtype};

/// Elements of a parameter: some blocks of quantized states, the last one not full.
const NUMEL: usize = 4096 + 3 * 256 + 77;

/// What makes the host's compiler take the kernels: one thread does what a grid does.
const HOST: &str = r#"
#include <cmath>
#include <cstring>
using std::sqrt;
#define __device__
#define __global__
#define __shared__ static
#define EACH_THREAD(t) for (int t = 0; t < 256; t++)
struct Place { unsigned x; };
static const Place blockIdx = {0}, threadIdx = {0}, blockDim = {1}, gridDim = {1};
static unsigned __float_as_uint(float value) { unsigned u; std::memcpy(&u, &value, 4); return u; }
static float __uint_as_float(unsigned bits) { float f; std::memcpy(&f, &bits, 4); return f; }
"#;

/// A rule's kernels, compiled for the host.
fn on_host(rule: &Rule, folder: &Path) -> Option<Library> {
    let (code, library) = (folder.join("kernels.cpp"), folder.join("kernels.so"));
    std::fs::write(&code, [HOST, &source(rule)].concat()).expect("a file");
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O2", "-ffp-contract=off", "-fwrapv", "-shared", "-fPIC", "-o"]);
    let output = match compiler.arg(&library).arg(&code).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: g++ does not start: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the library was just made of functions without initializers.
    Some(unsafe { Library::new(&library) }.expect("a library"))
}

fn range<T: Real>(buffers: &mut Buffers<T>, scalars: &Scalars, copies: bool) -> Range {
    let mut state = [0; 4];
    for (address, stored) in state.iter_mut().zip(&mut buffers.state) {
        *address = match stored {
            Stored::Values(values) => values.as_mut_ptr() as u64,
            Stored::Bf16(values) => values.as_mut_ptr() as u64,
            Stored::Codes(codes) => codes.as_mut_ptr() as u64,
            Stored::BlockScale(scales) => scales.as_mut_ptr() as u64,
        };
    }
    Range {
        master: buffers.master.as_mut_ptr() as u64,
        grad: buffers.grad.as_ptr() as u64,
        state,
        working: if copies { buffers.copy.as_mut_ptr() as u64 } else { 0 },
        count: buffers.master.len() as u64,
        first: 0,
        keys: scalars.rounding().keys(),
    }
}

/// Some steps by the rule and by its kernel.
fn compare<T: Real + PartialEq + std::fmt::Debug>(
    rule: &Rule,
    form: Form,
    (library, specs): (&Library, &[StateSpec]),
) {
    let name = form.kernel(rule);
    // SAFETY: that is the type of every kernel.
    let kernel = unsafe { library.get::<unsafe extern "C" fn(Range, Numbers<T>)>(name.as_bytes()) };
    let kernel = kernel.expect("a kernel of this name");
    for copies in [false, true] {
        let mut expected = Buffers::<T>::new(specs, NUMEL, 5);
        if let Some(hessian) = specs.iter().position(|spec| spec.kind == StateKind::Hessian) {
            expected.state[hessian] = Stored::Values(crate::sample::values(NUMEL, 9));
        }
        let mut found = expected.clone();
        for step in 1..=4 {
            let scalars = Scalars { step, ..SCALARS };
            rule.update(expected.elements(copies), &scalars).expect("an update");
            let (range, numbers) =
                (range(&mut found, &scalars, copies), numbers::<T>(rule, &scalars));
            // SAFETY: the range holds the addresses of buffers of its length and dtypes.
            unsafe { kernel(range, numbers) };
            assert!(found.bits() == expected.bits(), "{name}, copies {copies}, step {step}");
        }
    }
}

#[test]
fn on_the_host_kernels_have_the_bits_of_the_rules() {
    let folder = tempfile::tempdir().expect("a folder");
    for (number, rule) in rules().iter().enumerate() {
        let folder = folder.path().join(number.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let Some(library) = on_host(rule, &folder) else { return };
        let specs = rule.state_specs(NUMEL);
        match specs[0].storage {
            Storage::Bf16 => {
                compare::<f32>(rule, Form::F32Bf16, (&library, specs));
                compare::<f64>(rule, Form::F64Bf16, (&library, specs));
            }
            Storage::Codes => {
                compare::<f32>(rule, Form::F32Codes, (&library, specs));
                let full = rule.state_specs(1);
                compare::<f32>(rule, Form::F32, (&library, full));
                compare::<f64>(rule, Form::F64, (&library, full));
            }
            _ => {
                compare::<f32>(rule, Form::F32, (&library, specs));
                compare::<f64>(rule, Form::F64, (&library, specs));
            }
        }
    }
}

#[test]
fn the_run_time_compiler_takes_every_kernel_and_fuses_nothing() {
    for rule in &rules() {
        match compile(rule) {
            Ok(ptx) => {
                let ptx = ptx.to_src();
                for form in Form::of(rule) {
                    let entry = format!(".entry {}(", form.kernel(rule));
                    assert!(ptx.contains(&entry), "{entry}");
                }
                // Divisions are made of fused steps, which round once at the end: those of f64 in
                // the open, so only f32 can be looked at.
                assert!(!ptx.contains("fma.rn.f32"), "{}", rule.name());
                assert!(ptx.contains("div.rn.f32") || rule.name().starts_with("lion"));
            }
            Err(Error::CudaLibrary { library }) => {
                eprintln!("skipped: {library} is not here");
                return;
            }
            Err(error) => panic!("{}: {error}", rule.name()),
        }
    }
}

#[test]
fn a_rule_has_kernels_for_the_forms_of_its_states() {
    let state_dtype = StateDtype::Bf16;
    let rounded = RuleConfig::AdamW(AdamWConfig { state_dtype, ..AdamWConfig::default() });
    let rounded = rounded.build().expect("a rule");
    assert_eq!(Form::F32Bf16.kernel(&rounded), "adamw_f32_bf16");
    assert!(Form::of(&rounded).contains(&Form::F64Bf16));
}
