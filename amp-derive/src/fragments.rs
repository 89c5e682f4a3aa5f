//! Removes the traces that a `macro_rules!` macro leaves in the tokens of a struct.
//!
//! If a `macro_rules!` macro writes a struct, rustc wraps the value of each fragment, such as
//! `$l:expr` or `$t:ty`, in a group without delimiters. Names from the macro and names from the
//! macro's caller also have different hygiene. This module removes the groups and the difference in
//! hygiene before the rules and the generated code use the tokens.

use proc_macro2::{Delimiter, Group, Punct, Spacing, Span, TokenStream, TokenTree};
use syn::{Expr, PathArguments, Type, TypeParamBound, punctuated::Punctuated};

/// Returns the tokens of the struct as if no macro had written the struct. If no token is a group
/// without delimiters, returns the tokens unchanged, because rustc's messages refer to their spans.
pub(crate) fn written_out(tokens: TokenStream) -> TokenStream {
    match has_invisible_group(tokens.clone()) {
        true => with_one_hygiene(dissolve(tokens)),
        false => tokens,
    }
}

/// Replaces every group without delimiters by its content. If the content would then be parsed
/// differently, it gets parentheses. For example, `2 * $n` with `1 + 2` for `$n` becomes `2 * (1 +
/// 2)`. rustc itself ignores groups without delimiters in the output of a derive macro, and would
/// compute `2 * 1 + 2`.
fn dissolve(tokens: TokenStream) -> TokenStream {
    let mut output: Vec<TokenTree> = Vec::new();
    let mut rest = tokens.into_iter().peekable();
    while let Some(token) = rest.next() {
        let TokenTree::Group(group) = token else {
            output.push(token);
            continue;
        };
        let (content, span) = (dissolve(group.stream()), group.span());
        match group.delimiter() {
            Delimiter::None => output.extend(inserted(content, &output, rest.peek(), span)),
            delimiter => output.push(grouped(delimiter, content, span).into()),
        }
    }
    output.into_iter().collect()
}

fn has_invisible_group(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Group(group) => {
            group.delimiter() == Delimiter::None || has_invisible_group(group.stream())
        }
        _ => false,
    })
}

/// Returns `content`. If `content` would be parsed differently between `before` and `after`, adds
/// parentheses around it.
fn inserted(
    content: TokenStream,
    before: &[TokenTree],
    after: Option<&TokenTree>,
    span: Span,
) -> TokenStream {
    if is_punct(after, ':') && is_joint(after) {
        return match syn::parse2::<Type>(content.clone()) {
            Ok(ty) if !begins_a_path(&ty) => angled(content, span),
            _ => content,
        };
    }
    let alone = ends_before(before) && ends_after(after);
    let parentheses = !alone
        && match syn::parse2::<Expr>(content.clone()) {
            Ok(expr) => falls_apart(&expr, after),
            Err(_) => syn::parse2::<Type>(content.clone()).is_ok_and(|ty| has_a_sum(&ty)),
        };
    match parentheses {
        true => TokenTree::from(grouped(Delimiter::Parenthesis, content, span)).into(),
        false => content,
    }
}

/// Returns whether `::` may directly follow `ty`, as in `Linear::new`. A type such as `Vec<f64>`
/// must be in angle brackets: `<Vec<f64>>::new`.
fn begins_a_path(ty: &Type) -> bool {
    match ty {
        Type::Path(ty) => {
            ty.qself.is_none()
                && ty.path.segments.iter().all(|s| matches!(s.arguments, PathArguments::None))
        }
        _ => false,
    }
}

/// Returns whether `expr` needs parentheses, because a neighbouring operator would otherwise apply
/// to only a part of it.
fn falls_apart(expr: &Expr, after: Option<&TokenTree>) -> bool {
    match expr {
        Expr::Array(_)
        | Expr::Await(_)
        | Expr::Call(_)
        | Expr::Index(_)
        | Expr::Infer(_)
        | Expr::Lit(_)
        | Expr::Macro(_)
        | Expr::MethodCall(_)
        | Expr::Paren(_)
        | Expr::Path(_)
        | Expr::Repeat(_)
        | Expr::Try(_)
        | Expr::Tuple(_)
        // A `let` condition, as in `if let`, must not be in parentheses.
        | Expr::Let(_) => false,
        // `(self.function)(x)` calls the function in the field. Without the parentheses, it would
        // call a method.
        Expr::Field(_) => is_group(after, Delimiter::Parenthesis),
        // A prefix operator binds more weakly than a postfix operator, but more strongly than every
        // other operator. A block also gets parentheses only before a postfix operator, because
        // elsewhere it may be the body of an `if`.
        Expr::Unary(_) | Expr::Reference(_) | Expr::Block(_) => {
            is_postfix(after)
        }
        _ => true,
    }
}

/// Returns whether `ty` contains several bounds, as in `&(dyn Module + Send)`, so that it needs
/// parentheses.
fn has_a_sum(ty: &Type) -> bool {
    let several = |bounds: &Punctuated<TypeParamBound, _>| bounds.len() > 1;
    match ty {
        Type::TraitObject(ty) => several(&ty.bounds),
        Type::ImplTrait(ty) => several(&ty.bounds),
        _ => false,
    }
}

/// Returns whether an expression may follow `before` without parentheses: whether `before` is empty
/// or its last token is `,`, `;`, `:` or the `=` of an assignment.
fn ends_before(before: &[TokenTree]) -> bool {
    let (last, last_but_one) = match before {
        [] => return true,
        [last] => (last, None),
        [.., last_but_one, last] => (last, Some(last_but_one)),
    };
    // `==` and `..=` are operators, `=` alone is not.
    let assigns = is_punct(Some(last), '=') && !is_joint(last_but_one);
    assigns || [',', ';', ':'].into_iter().any(|c| is_punct(Some(last), c))
}

fn ends_after(after: Option<&TokenTree>) -> bool {
    after.is_none() || [',', ';'].into_iter().any(|c| is_punct(after, c))
}

/// Returns whether the next token begins a call, an index, a field access or a `?`. `..` is a range
/// operator and does not count.
fn is_postfix(after: Option<&TokenTree>) -> bool {
    is_group(after, Delimiter::Parenthesis)
        || is_group(after, Delimiter::Bracket)
        || is_punct(after, '?')
        || is_punct(after, '.') && !is_joint(after)
}

fn is_group(token: Option<&TokenTree>, delimiter: Delimiter) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == delimiter)
}

fn is_punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == c)
}

fn is_joint(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.spacing() == Spacing::Joint)
}

fn grouped(delimiter: Delimiter, content: TokenStream, span: Span) -> Group {
    let mut group = Group::new(delimiter, content);
    group.set_span(span);
    group
}

/// Returns `<content>`.
fn angled(content: TokenStream, span: Span) -> TokenStream {
    let punct = |c| {
        let mut punct = Punct::new(c, Spacing::Alone);
        punct.set_span(span);
        TokenTree::from(punct)
    };
    [punct('<')].into_iter().chain(content).chain([punct('>')]).collect()
}

/// Gives all tokens the hygiene of the derive macro. If a caller passes `self` to a macro, as in
/// `net!(lr = self.rate)`, this `self` then means the `self` of the generated method. If the caller
/// passes the name `width`, it means the field `width` that the macro wrote.
fn with_one_hygiene(tokens: TokenStream) -> TokenStream {
    let token = |mut token: TokenTree| {
        if let TokenTree::Group(group) = &token {
            let content = with_one_hygiene(group.stream());
            token = grouped(group.delimiter(), content, group.span()).into();
        }
        // `$crate` must keep its span, because the compiler finds the crate by the hygiene of this
        // span.
        let is_crate = matches!(&token, TokenTree::Ident(name) if name == "$crate");
        if !is_crate {
            token.set_span(Span::call_site().located_at(token.span()));
        }
        token
    };
    tokens.into_iter().map(token).collect()
}

#[cfg(test)]
mod tests;
