// Lion with an 8-bit state, as lion_8bit.rs. After lion.cu, whose formula and numbers it takes.

KERNEL(lion_8bit_f32, one_state, Lion, float, float)
KERNEL(lion_8bit_f64, one_state, Lion, double, double)
extern "C" __global__ void lion_8bit_f32_codes(Range range, Numbers<float> n) {
    one_quantized<Lion>(range, n);
}
