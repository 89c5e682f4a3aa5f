// The options of optimizers, as Rust passes them and the kernels receive them. The .cu files of the
// kernels explain the options.
#pragma once

#include "kernels/adam.h"
#include "kernels/lion.h"
#include "kernels/rmsprop.h"
#include "kernels/sgd.h"
