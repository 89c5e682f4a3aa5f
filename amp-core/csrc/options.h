// The optimizers' options, as passed from Rust to the kernels; the kernels' files explain them.
#pragma once

#include "kernels/adam.h"
#include "kernels/lion.h"
#include "kernels/rmsprop.h"
#include "kernels/sgd.h"
