//! SwiGLU and GELU, forward and backward.

use tch::Tensor;

use super::source::Kernel;
use super::{Call, Fused, Grid, PACK};

impl Fused {
    /// `silu(gate) * up` `[N, F]` of `gate_up` `[N, 2 F]`, `F` of whole packs.
    pub fn swiglu_forward(&self, gate_up: &Tensor) -> Tensor {
        let (rows, width) = gate_up.size2().expect("gate_up is [N, 2 F]");
        let width = width / 2;
        assert!(self.takes(width), "rows are whole packs");
        let act = gate_up.new_empty([rows, width], (gate_up.kind(), gate_up.device()));
        let pointers =
            [self.activations(gate_up, 2 * rows * width), self.activations(&act, rows * width)];
        let grid = Grid::packs(rows * width / PACK);
        self.run(Kernel::SwigluForward, grid, &Call::new(pointers, [rows, width]));
        act
    }

    /// The gradient of `gate_up` for that of [`Fused::swiglu_forward`]'s result.
    pub fn swiglu_backward(&self, gate_up: &Tensor, d_act: &Tensor) -> Tensor {
        let (rows, width) = d_act.size2().expect("d_act is [N, F]");
        assert!(self.takes(width), "rows are whole packs");
        let d_gate_up = gate_up.empty_like();
        let pointers = [
            self.activations(gate_up, 2 * rows * width),
            self.activations(d_act, rows * width),
            self.activations(&d_gate_up, 2 * rows * width),
        ];
        let grid = Grid::packs(rows * width / PACK);
        self.run(Kernel::SwigluBackward, grid, &Call::new(pointers, [rows, width]));
        d_gate_up
    }

    /// GELU of each element, which are whole packs.
    pub fn gelu_forward(&self, x: &Tensor) -> Tensor {
        let y = x.empty_like();
        let numel = x.numel() as i64;
        assert!(self.takes(numel), "elements are whole packs");
        let pointers = [self.activations(x, numel), self.activations(&y, numel)];
        self.run(Kernel::GeluForward, Grid::packs(numel / PACK), &Call::new(pointers, [numel]));
        y
    }

    /// The gradient of `x` for that of [`Fused::gelu_forward`]'s result.
    pub fn gelu_backward(&self, x: &Tensor, dy: &Tensor) -> Tensor {
        let dx = x.empty_like();
        let numel = x.numel() as i64;
        assert!(self.takes(numel), "elements are whole packs");
        let pointers =
            [self.activations(x, numel), self.activations(dy, numel), self.activations(&dx, numel)];
        self.run(Kernel::GeluBackward, Grid::packs(numel / PACK), &Call::new(pointers, [numel]));
        dx
    }
}
