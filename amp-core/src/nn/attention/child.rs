//! [`Child`] methods that call an attention layer with queries, keys, values and a mask.

use tch::Tensor;

use super::{AttentionMask, MultiheadAttention};
use crate::{
    Result,
    nn::{Child, Context, Forward, Op, Visit, Visitor},
};

/// Wraps an attention layer as a module whose forward pass is [`MultiheadAttention::attend`].
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

/// Wraps an attention layer as a module whose forward pass is
/// [`MultiheadAttention::attend_with_weights`].
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
    /// Calls [`MultiheadAttention::attend_with_weights`] as a child module: adds the child's name
    /// to the module path, and applies the child's precision region.
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

    /// Calls [`MultiheadAttention::attend`] as a child module: adds the child's name to the module
    /// path, and applies the child's precision region.
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
