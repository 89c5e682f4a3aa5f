// Writes the learning rate and the momentum to the memory from which the steps in CUDA graphs read
// them.

extern "C" __global__ void write_rates(double* rates, double lr, double momentum) {
  rates[0] = lr;
  rates[1] = momentum;
}
