// The options of optimizers, as Rust passes them and the kernels receive them. The options of Adam, SGD
// and RMSprop are named as in torch.optim.
#pragma once

#include "kernels/adam.h"
#include "kernels/lion.h"
#include "kernels/rmsprop.h"
#include "kernels/sgd.h"
