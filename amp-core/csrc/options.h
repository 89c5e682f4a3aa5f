// The optimizers' options as they cross from Rust and go to the kernels, whose files say what they are.
#pragma once

#include "kernels/adam.h"
#include "kernels/lion.h"
#include "kernels/rmsprop.h"
#include "kernels/sgd.h"
