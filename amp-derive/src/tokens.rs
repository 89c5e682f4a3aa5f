//! Searches the user's code for names. The code is searched as tokens and not parsed, so that names
//! inside macro calls are found too.

use proc_macro2::{Delimiter, Ident, Spacing, Span, TokenStream, TokenTree};
use syn::{Expr, Lifetime, Token, parse::Parser, punctuated::Punctuated};

/// Returns an identifier that does not occur in `tokens`. It consists of `name` and as many
/// underscores as are needed.
pub(crate) fn free(name: &str, tokens: TokenStream, span: Span) -> Ident {
    let taken = flat(tokens);
    let mut free = Ident::new(name, span);
    while taken.iter().any(|token| matches!(token, TokenTree::Ident(name) if *name == free)) {
        free = Ident::new(&format!("{free}_"), span);
    }
    free
}

/// Replaces the word `macro` after `=` by the raw identifier `r#macro`. torchmetrics
/// has a value `macro`, but in Rust `macro` is a keyword and cannot be parsed as an expression.
pub(crate) fn with_raw_words(tokens: TokenStream) -> TokenStream {
    let mut behind = false;
    let raw = tokens.into_iter().map(|token| {
        let is_value = std::mem::replace(
            &mut behind,
            matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '='),
        );
        match &token {
            TokenTree::Ident(word) if is_value && word == "macro" => {
                TokenTree::Ident(Ident::new_raw("macro", word.span()))
            }
            _ => token,
        }
    });
    raw.collect()
}

/// Returns whether the identifier `name` occurs in `tokens`.
pub(crate) fn contains(tokens: TokenStream, name: &Ident) -> bool {
    flat(tokens).iter().any(|token| matches!(token, TokenTree::Ident(ident) if ident == name))
}

/// Returns whether `name` occurs as a variable or function, and not after `.` or `::`.
pub(crate) fn mentions(tokens: TokenStream, name: &Ident) -> bool {
    mention(tokens, &name.to_string()).is_some()
}

/// Returns the first occurrence of `name` that does not follow `.` or `::`.
pub(crate) fn mention(tokens: TokenStream, name: &str) -> Option<Ident> {
    let tokens = flat(tokens);
    tokens.iter().enumerate().find_map(|(at, token)| match token {
        TokenTree::Ident(ident) if ident == name && !is_member(&tokens[..at]) => {
            Some(ident.clone())
        }
        _ => None,
    })
}

/// Returns the arguments of a call if `token` is a parenthesized group.
pub(crate) fn arguments(token: Option<&TokenTree>) -> Option<Vec<Expr>> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {
            let parser = Punctuated::<Expr, Token![,]>::parse_terminated;
            parser.parse2(group.stream()).ok().map(|inputs| inputs.into_iter().collect())
        }
        _ => None,
    }
}

/// Returns the names that are called as functions.
pub(crate) fn called(tokens: TokenStream) -> Vec<Ident> {
    calls(tokens).into_iter().map(|(name, _)| name).collect()
}

/// Returns the names that `tokens` calls as functions, each with the number of its arguments.
pub(crate) fn calls(tokens: TokenStream) -> Vec<(Ident, usize)> {
    let mut called = Vec::new();
    let mut before: Vec<TokenTree> = Vec::new();
    for token in tokens {
        if let TokenTree::Group(group) = &token {
            if let (Some(arguments), Some((TokenTree::Ident(name), rest))) =
                (arguments(Some(&token)), before.split_last())
                && !is_member(rest)
            {
                called.push((name.clone(), arguments.len()));
            }
            called.extend(calls(group.stream()));
        }
        before.push(token);
    }
    called
}

/// Returns the first occurrence of `name` that is a variable, and not a member or a called
/// function.
pub(crate) fn variable(tokens: TokenStream, name: &Ident) -> Option<Ident> {
    let mut before: Vec<TokenTree> = Vec::new();
    let mut rest = tokens.into_iter().peekable();
    while let Some(token) = rest.next() {
        let is_called = matches!(rest.peek(), Some(TokenTree::Group(group))
            if group.delimiter() == Delimiter::Parenthesis);
        let found = match &token {
            TokenTree::Ident(ident) if ident == name && !is_member(&before) && !is_called => {
                Some(ident.clone())
            }
            TokenTree::Group(group) => variable(group.stream(), name),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
        before.push(token);
    }
    None
}

/// Returns whether `tokens` use `Self`, or use `self` in another way than to access one of
/// `fields`.
pub(crate) fn passes_self_on(tokens: TokenStream, fields: &[&Ident]) -> bool {
    let tokens = flat(tokens);
    tokens.iter().enumerate().any(|(at, token)| {
        let TokenTree::Ident(ident) = token else {
            return false;
        };
        let reads_a_field = matches!(
            tokens.get(at + 1..at + 3),
            Some([TokenTree::Punct(dot), TokenTree::Ident(field)])
                if dot.as_char() == '.' && fields.contains(&field)
        );
        ident == "Self" || ident == "self" && !reads_a_field
    })
}

/// Returns whether `tokens` contain `self.field`.
pub(crate) fn reads_from_self(tokens: TokenStream, field: &Ident) -> bool {
    flat(tokens).windows(3).any(|window| {
        matches!(window, [TokenTree::Ident(this), TokenTree::Punct(dot), TokenTree::Ident(name)]
            if this == "self" && dot.as_char() == '.' && name == field)
    })
}

/// Returns the first named lifetime in `tokens`, which is a lifetime other than `'static` and `'_`.
pub(crate) fn named_lifetime(tokens: TokenStream) -> Option<Lifetime> {
    let tokens = flat(tokens);
    tokens.windows(2).find_map(|pair| match pair {
        [TokenTree::Punct(mark), TokenTree::Ident(name)] if mark.as_char() == '\'' => {
            let is_named = name != "static" && name != "_";
            is_named.then(|| Lifetime::new(&format!("'{name}"), name.span()))
        }
        _ => None,
    })
}

/// Returns whether the token after `before` is the name of a field, a method or a path segment.
pub(crate) fn is_member(before: &[TokenTree]) -> bool {
    let punct = |token: Option<&TokenTree>, c: char| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == c);
    let joint = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.spacing() == Spacing::Joint);
    let mut back = before.iter().rev();
    let (last, last_but_one) = (back.next(), back.next());
    if punct(last, '.') {
        // `..name` is a range, not a member.
        return !(punct(last_but_one, '.') && joint(last_but_one));
    }
    punct(last, ':') && punct(last_but_one, ':') && joint(last_but_one)
}

/// Returns all tokens in order, including those inside groups. The delimiters of groups are left
/// out.
fn flat(tokens: TokenStream) -> Vec<TokenTree> {
    tokens
        .into_iter()
        .flat_map(|token| match token {
            TokenTree::Group(group) => flat(group.stream()),
            other => vec![other],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;

    fn ident(name: &str) -> Ident {
        Ident::new(name, Span::call_site())
    }

    #[test]
    fn variables_are_mentioned_and_members_are_not() {
        let head = ident("head");
        for tokens in [
            quote!(head(x)),
            quote!(vec![head(x)?]),
            quote!(0..head),
            quote!(Pair { a: head }),
            quote!(f(&head)),
        ] {
            assert!(mentions(tokens.clone(), &head), "{tokens}");
        }
        for tokens in [quote!(self.head), quote!(x.head()), quote!(models::head(x)), quote!(body)] {
            assert!(!mentions(tokens.clone(), &head), "{tokens}");
        }
    }

    #[test]
    fn calls_and_variables_are_distinguished() {
        let tokens = quote!(head(&body(x)?).tanh() * rate + self.decay + f![y]);
        let called: Vec<String> = called(tokens.clone()).iter().map(Ident::to_string).collect();
        assert_eq!(called, ["head", "body"]);
        for (name, is_variable) in [("rate", true), ("x", true), ("head", false), ("decay", false)]
        {
            assert_eq!(variable(tokens.clone(), &ident(name)).is_some(), is_variable, "{name}");
        }
    }

    #[test]
    fn free_names_are_taken_by_nothing() {
        let tokens = quote!(
            struct Net {
                a: __NetBuilder,
                b: Vec<[__NetBuilder_; 2]>,
            }
        );
        for (name, free_name) in [("__NetBuilder", "__NetBuilder__"), ("c", "c")] {
            assert_eq!(free(name, tokens.clone(), Span::call_site()), free_name);
        }
    }

    #[test]
    fn self_is_handed_on_unless_a_field_is_read() {
        let fields = [&ident("head")];
        assert!(!passes_self_on(quote!(x.matmul(self.head.weight())), &fields));
        for tokens in [quote!(self.run(x)), quote!(run(self, x)), quote!(Self::run(x))] {
            assert!(passes_self_on(tokens.clone(), &fields), "{tokens}");
        }
    }
}
