create function gen_random_bytes(count integer) returns bytea language sql volatile parallel safe
  return pg_catalog.substring(
    (
      select pg_catalog.string_agg(pg_catalog.sha256(pg_catalog.uuid_send(gen_random_uuid())), '')
      from pg_catalog.generate_series(0, count / 32)
    ),
    1, count);

create function digest(data bytea, type text) returns bytea language plpgsql immutable strict as $$
begin
  case lower(type)
    when 'md5' then return decode(md5(data), 'hex');
    when 'sha224' then return sha224(data);
    when 'sha256' then return sha256(data);
    when 'sha384' then return sha384(data);
    when 'sha512' then return sha512(data);
    else raise exception 'Cannot use "%": No such hash algorithm', type using errcode = '22023';
  end case;
end $$;

create function digest(data text, type text) returns bytea language plpgsql immutable strict as $$
begin
  case lower(type)
    when 'md5' then return decode(md5(data), 'hex');
    when 'sha224' then return sha224(convert_to(data, 'UTF8'));
    when 'sha256' then return sha256(convert_to(data, 'UTF8'));
    when 'sha384' then return sha384(convert_to(data, 'UTF8'));
    when 'sha512' then return sha512(convert_to(data, 'UTF8'));
    else raise exception 'Cannot use "%": No such hash algorithm', type using errcode = '22023';
  end case;
end $$;
