//! Calls the methods of an attention layer that take several inputs, if the layer is a child of
//! another module.

use tch::Tensor;

use super::{AttentionMask, MultiheadAttention};
use crate::{
    Result,
    nn::{Child, Context, Forward, Op, Visit, Visitor},
};

/// An attention layer as a module whose inputs are queries, keys, values and mask.
struct Attending<'m>(&'m MultiheadAttention);

impl Visit for Attending<'_> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.0.visit(visitor);
    }
}

impl Forward for Attending<'_> {
    type Input = (&'static Tensor, &'static Tensor, &'static Tensor, &'static AttentionMask);
    type Output = Tensor;

    fn forward_with(
        &self,
        (query, key, value, mask): (&Tensor, &Tensor, &Tensor, &AttentionMask),
        cx: &Context,
    ) -> Result<Tensor> {
        self.0.attend(query, key, value, mask, cx)
    }

    fn own_op(&self) -> Op {
        Op::Matmul
    }

    fn own_type_name(&self) -> &'static str {
        self.0.own_type_name()
    }
}

/// An attention layer as a module whose inputs are queries, keys, values and mask, and which also
/// returns the attention weights.
struct AttendingWithWeights<'m>(&'m MultiheadAttention);

impl Visit for AttendingWithWeights<'_> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.0.visit(visitor);
    }
}

impl Forward for AttendingWithWeights<'_> {
    type Input = (&'static Tensor, &'static Tensor, &'static Tensor, &'static AttentionMask);
    type Output = (Tensor, Tensor);

    fn forward_with(
        &self,
        (query, key, value, mask): (&Tensor, &Tensor, &Tensor, &AttentionMask),
        cx: &Context,
    ) -> Result<(Tensor, Tensor)> {
        self.0.attend_with_weights(query, key, value, mask, cx)
    }

    fn own_op(&self) -> Op {
        Op::Matmul
    }

    fn own_type_name(&self) -> &'static str {
        self.0.own_type_name()
    }
}

impl Child<'_, MultiheadAttention> {
    /// Calls [`MultiheadAttention::attend_with_weights`] under the child's path and in the child's
    /// precision region.
    ///
    /// # Errors
    /// When that method fails; the error contains the path of the innermost module that failed.
    pub fn attend_with_weights(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<(Tensor, Tensor)> {
        self.run_as(&AttendingWithWeights(self.module()), (query, key, value, mask), cx)
    }

    /// Calls [`MultiheadAttention::attend`] under the child's path and in the child's precision
    /// region.
    ///
    /// # Errors
    /// When that method fails; the error contains the path of the innermost module that failed.
    pub fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: &AttentionMask,
        cx: &Context,
    ) -> Result<Tensor> {
        self.run_as(&Attending(self.module()), (query, key, value, mask), cx)
    }
}
