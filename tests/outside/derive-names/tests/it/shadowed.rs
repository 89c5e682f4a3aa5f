//! Tests that the generated code still works if the user's code defines items with the same names
//! as the generated code uses.

/// A module without the prelude, in which the prelude's names mean something else. It also has
/// statics, constants and unit structs with usual names of variables. A `let` cannot shadow such an
/// item, so the generated code must not have variables with these names.
#[no_implicit_prelude]
#[allow(dead_code, unused_macros, non_camel_case_types, non_upper_case_globals)]
pub(crate) mod hostile {
    use ::engine::{LightningModule, Module, nn};

    pub(crate) mod amp_core {}
    mod core {}
    mod std {}
    mod engine {}
    mod optim {}

    struct Result;
    struct Box;
    struct String;
    struct Option;
    struct Some;
    struct None;
    struct Ok;
    struct Err;
    struct Error;
    struct Vec;
    struct str;
    struct bool;
    trait Default {}
    trait From {}
    trait Into {}
    trait Iterator {}
    trait ToString {}
    trait TryFrom {}

    macro_rules! vec {
        ($($any:tt)*) => {
            ()
        };
    }
    macro_rules! unreachable {
        ($($any:tt)*) => {
            ()
        };
    }

    struct input;
    struct output;
    struct values;
    struct name;
    static value: u8 = 0;
    static loss: u8 = 0;
    static batch: u8 = 0;
    static step: u8 = 0;
    const visitor: u8 = 0;
    const layers: u8 = 0;
    const builder: u8 = 0;
    const state: u8 = 0;
    const base: u8 = 0;
    const hook: u8 = 0;
    const gradients: u8 = 0;
    const outcome: u8 = 0;
    const criterion: u8 = 0;
    const block: u8 = 0;

    /// A struct whose name is also the name of a struct that is generated for [`Net`].
    #[derive(Module)]
    pub(crate) struct __NetBuilder {
        #[hparam]
        __model: i64,
        #[layer(linear(__model, __model))]
        layer: nn::Linear,
    }

    #[derive(Module)]
    #[forward(|x| inner(x))]
    pub(crate) struct Block<__M> {
        #[hparam]
        __model: i64,
        #[hparam(default = __reads())]
        width: i64,
        #[layer]
        inner: __M,
    }

    fn __reads() -> i64 {
        2
    }

    #[derive(LightningModule)]
    #[loss(with = |a, b| ::engine::loss::cross_entropy(a, b))]
    #[metric(accuracy)]
    #[optimizer(sgd, lr = self.lr, group(params = ["*.bias"], momentum = 0.5))]
    #[scheduler(step_lr, step_size = plan.max_epochs)]
    #[optimizer(lion, lr = self.lr, params = ["wrapped.*"])]
    #[scheduler(reduce_lr_on_plateau, monitor = val_loss, mode = max)]
    #[on_before_optimizer_step(Self::look)]
    #[on_train_batch_end(Self::seen)]
    pub(crate) struct Net {
        #[hparam(default = 0.1)]
        lr: f64,
        #[hparam(default)]
        classes: i64,
        #[layer(repeat(1, |_| linear(2, 2)))]
        many: ::std::vec::Vec<nn::Linear>,
        #[layer(sequential(linear(2, 2), relu))]
        body: nn::Sequential,
        #[layer(__NetBuilder::builder(2).build()?)]
        wrapped: __NetBuilder,
        #[layer(optional(classes > 0, relu))]
        maybe: ::core::option::Option<nn::Relu>,
        #[state]
        steps: u64,
    }

    type Done = ::engine::Result<()>;

    impl Net {
        fn look(
            &mut self,
            _: &::engine::precision::Gradients<::engine::precision::Unscaled>,
            _: &mut ::engine::Hook<'_>,
        ) -> Done {
            self.steps += 1;
            Done::Ok(())
        }

        fn seen(
            &mut self,
            _: &::engine::tch::Tensor,
            _: ::core::option::Option<&::engine::precision::StepOutcome>,
            _: &mut ::engine::Hook<'_>,
        ) -> Done {
            Done::Ok(())
        }

        pub(crate) fn steps(&self) -> u64 {
            self.steps
        }
    }
}

#[test]
fn names_of_the_user_do_not_clash_with_the_derives() {
    let mut model = hostile::Net::builder().classes(2).build().expect("a model");
    assert!(super::step(&mut model).is_finite());
    assert_ne!(model.steps(), 0);
    let block = hostile::Block::builder(3, engine::prelude::Relu).build().expect("a block");
    let names = engine::nn::named_tensors(&block);
    assert_eq!(names.len(), 0);
}
